"""Count the bytes that a compiled block of a vision tower moves: chains of pointwise operations and
sums are one kernel each, which reads its inputs once and writes what others need.

The block is traced by torch's own partitioner, forward and backward, with tensors that have shapes
alone; nothing is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from functorch.compile import aot_function, make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu.count import BYTES, FLOPS
from tests.support.real_sizes import config_of

aten = torch.ops.aten
# These read and write through a library, and nothing is fused with them.
_PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.convolution}
_VIEWS = {
    *(aten.view, aten.t, aten.transpose, aten.permute, aten.expand, aten.unsqueeze, aten.squeeze),
    *(aten._unsafe_view, aten.reshape, aten.slice, aten.select, aten.detach, aten.alias),
}


def _nbytes(value: Any) -> int:
    values = value if isinstance(value, tuple | list) else [value]
    return sum(each.numel() * each.element_size() for each in values if isinstance(each, Tensor))


def _is_product(node: torch.fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return packet in _PRODUCTS or "attention" in str(packet)


def work_of(graph: torch.fx.Graph) -> dict[str, float]:
    """Kernels, multiplications, bytes and modelled seconds of a graph whose chains are fused."""
    origin: dict[torch.fx.Node, torch.fx.Node] = {}  # of a view, or of one result of several
    depth: dict[torch.fx.Node, int] = {}  # products on the longest way to a node
    group: dict[torch.fx.Node, Any] = {}
    for node in graph.nodes:
        sources = [origin[each] for each in node.all_input_nodes]
        packet = getattr(node.target, "overloadpacket", None)
        is_alias = packet in _VIEWS or getattr(node.target, "__name__", "") == "getitem"
        if is_alias and sources:
            origin[node] = sources[0]
            continue
        origin[node] = node
        depth[node] = max((depth[each] + _is_product(each) for each in sources), default=0)
        if node.op != "call_function":
            continue
        # a chain goes on from an input of the same depth
        before = [each for each in sources if each in group and not _is_product(each)]
        chains = [group[each] for each in before if depth[each] == depth[node]]
        group[node] = node if _is_product(node) or not chains else chains[0]
    kernels: dict[Any, list[torch.fx.Node]] = {}
    for node, first in group.items():
        kernels.setdefault(first, []).append(node)
    users: dict[torch.fx.Node, set[Any]] = {}
    for node in graph.nodes:
        for each in node.all_input_nodes:
            if origin.get(node, node) is node:  # a view reads nothing
                users.setdefault(origin[each], set()).add(group.get(node, "output"))
    work = dict.fromkeys(("kernels", "flops", "bytes", "seconds"), 0.0)
    for first, nodes in kernels.items():
        inputs = {origin[each] for node in nodes for each in node.all_input_nodes} - set(nodes)
        outputs = [node for node in nodes if users.get(node, set()) - {first}]
        moved = sum(_nbytes(each.meta.get("val")) for each in (*inputs, *outputs))
        flops = 0
        for node in filter(_is_product, nodes):
            values = torch.fx.node.map_arg(node.args, lambda each: each.meta["val"])
            formula = flop_registry.get(getattr(node.target, "overloadpacket", None))
            if formula:
                flops += formula(*values, out_val=node.meta["val"])
            else:  # attention on a CPU: two products, and backward five
                back = "backward" in str(node.target)
                (*sizes, width), key = values[back].shape, values[1 + back].shape
                flops += (5 if back else 2) * 2 * math.prod(sizes) * key[-2] * width
        work["kernels"] += 1
        work["flops"] += flops
        work["bytes"] += moved
        work["seconds"] += max(flops / FLOPS[16], moved / BYTES)
    return work


def compiled_block(size: str, images: int) -> tuple[dict[str, float], dict[str, float]]:
    """Work of one block of the vision tower, forward with a graph and backward."""
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    config = config_of(size).vision_config
    config._attn_implementation = "sdpa"
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    found: list[dict[str, float]] = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.append(work_of(graph.graph))
        return make_boxed_func(graph.forward)

    with FakeTensorMode():
        block = CLIPEncoderLayer(config).eval()
        hidden = torch.empty(images, tokens, config.hidden_size, requires_grad=True)
        names = [name for name, _ in block.named_parameters()]

        def run(hidden: Tensor, *values: Tensor) -> Any:
            weights = dict(zip(names, values, strict=True))
            return torch.func.functional_call(block, weights, (hidden, None))

        traced = aot_function(
            run,
            fw_compiler=count,
            bw_compiler=count,
            partition_fn=min_cut_rematerialization_partition,
        )
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            out = traced(hidden, *block.parameters())
        out = out[0] if isinstance(out, tuple) else out
        out.sum().backward()
    forward, backward = found
    return forward, backward
