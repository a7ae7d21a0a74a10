"""The cost of deciding on a CLIP of real size, in joint gradient passes of plain transformers.

    python -m benchmarks.speed.decide --folder CACHE [--json FILE]

The model has random weights and the shapes of a ViT-B/32 or ViT-L/14; the images are random
numbers. "One joint gradient pass" is ``CLIPModel``'s forward and backward passes over the same
images and prompts, every prompt once; the images go through it piece by piece if their activations
would not fit into memory together. It is timed before and after each measure, in one run;
``--alone`` leaves it out, so that the peak memory is clipmerge's. With one thread, seconds are
those of the processor. Plain transformers and clipmerge both keep freed memory for further tensors.

``path-point`` is one of the six points of ``path-barrier``; ``first-step`` is ``auto`` with one
step; ``look`` is one of the 25 looks of ``auto`` at held-back images, here at as many images as a
step has. With ``--captions`` every image has a caption of its own in place of a class, and the loss
is CLIP's over the batch. ``python -m benchmarks.speed.decide_cases`` runs the cases of
docs/research/cost.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, normalize
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from benchmarks.speed.checkpoints import clip_config
from benchmarks.speed.processes import checkout_folder, compare_checkouts, memory_mb, write_results
from clipmerge.api.measure import cost_sentence
from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.distributed import distributed_context
from clipmerge.images.batches import batch_size_for
from clipmerge.learning import activations
from clipmerge.learning.choice import validate
from clipmerge.learning.learning_loss import LossConfig
from clipmerge.learning.objective import Batch, Objective
from clipmerge.learning.sharded_batches import ShardedBatches
from clipmerge.learning.slopes import Slopes
from clipmerge.learning.steps import lay_out
from clipmerge.learning.zeroshot_loss import Prompts
from clipmerge.measures.first_order import first_order
from clipmerge.measures.learned_coefficients import learned_coefficients
from clipmerge.measures.learned_sparse import learned_sparse
from clipmerge.measures.path_barrier import path_barrier
from clipmerge.models import model_for
from clipmerge.models.memory import retain_freed_memory
from clipmerge.progress import Pace, Progress
from tests.support.tiny_clip import END, START, vocabulary

# Size of a change relative to the mean size of a parameter's entries: small, as in fine-tuning.
_CHANGE = 0.1
# Number of images whose activations plain transformers hold at once.
_AT_ONCE = {"b32": 64, "l14": 8}
T = TypeVar("T")


def processor() -> CLIPProcessor:
    """A processor for 224 pixels and 77 tokens that splits words into letters: ``a photo of a ab.``
    has 14 tokens."""
    images = CLIPImageProcessor(
        size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
    )
    return CLIPProcessor(
        image_processor=images, tokenizer=CLIPTokenizer(vocabulary(), [], model_max_length=77)
    )


def save_pair(folder: Path, size: str, *, both: bool) -> tuple[Path, Path]:
    """Save both ends, unless they exist; without ``both`` the text tower does not change."""
    paths = (folder / f"{size}-zeroshot", folder / f"{size}-{'both' if both else 'vision'}")
    config = clip_config(size)
    words = vocabulary()
    config["text_config"] |= {
        "bos_token_id": words[START],
        "eos_token_id": words[END],
        "pad_token_id": words[END],
    }
    torch.manual_seed(0)
    if not all((path / "done").exists() for path in paths):
        model = CLIPModel(CLIPConfig.from_dict(config))
        for path in paths:
            model.save_pretrained(path)
            processor().save_pretrained(path)
            (path / "done").touch()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if both or not name.startswith("text"):
                        parameter.add_(
                            _CHANGE * parameter.abs().mean() * torch.randn(parameter.shape)
                        )
    return paths


def prompts_for(classes: int, templates: int, words: int) -> list[str]:
    """Prompts class by class; all are different and equally long."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [letters[i // 676] + letters[i // 26 % 26] + letters[i % 26] for i in range(classes)]
    kinds = [letters[i // 26] + letters[i % 26] for i in range(templates)]
    return [f"a photo of {kind} {name}{' a' * words}." for name in names for kind in kinds]


class Told(Progress):
    """Keeps the statement of the cost, and the time at which it is made."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.sentences: list[tuple[float, str]] = []

    def say(self, text: str) -> None:
        self.sentences.append((time.perf_counter() - self.begin, text))


def objective_for(
    paths: tuple[Path, Path], options: argparse.Namespace, told: Told | None = None
) -> Objective:
    torch.manual_seed(1)
    size = batch_size_for(options.images, None)
    starts = range(0, options.images, size)
    if options.captions:
        options.classes = options.images
    batches = [
        Batch(
            number,
            torch.randn(min(size, options.images - start), 3, 224, 224),
            torch.arange(start, min(start + size, options.images))
            if options.captions
            else torch.randint(0, options.classes, (min(size, options.images - start),)),
        )
        for number, start in enumerate(starts)
    ]
    context = distributed_context("cpu")
    prompts = prompts_for(options.classes, options.templates, options.words)
    pace = Pace(told or Told(), torch.device("cpu"), *cost_sentence(options.images))
    pair = align_checkpoints(open_checkpoint(str(paths[0])), [open_checkpoint(str(paths[1]))])
    assert pair.zeroshot.config is not None
    model = model_for(pair.family, pair.zeroshot.config, paths[0])
    return Objective(
        model,
        pair,
        ShardedBatches(batches[context.rank :: context.world_size], context),
        Prompts(model, prompts, options.templates, context.device),
        contrastive=options.captions,
        images_at_once=options.images_at_once,
        progress=pace.advance,
    )


class Plain:
    """One joint gradient pass with transformers alone."""

    def __init__(self, folder: Path, options: argparse.Namespace, *, both: bool) -> None:
        self.model = CLIPModel.from_pretrained(folder).eval()
        self.templates = options.templates
        self.at_once = _AT_ONCE[options.size]
        self.both = both
        self.has_captions = options.captions
        texts = prompts_for(options.classes, options.templates, options.words)
        self.tokens = dict(processor().tokenizer(texts, padding=True, return_tensors="pt"))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(both or not name.startswith("text"))

    def gradient_pass(self, batches: list[Batch]) -> None:
        """Leave the gradient of the mean loss of all images in the parameters."""
        self.model.zero_grad()
        with torch.set_grad_enabled(self.both):
            text = self.model.get_text_features(**self.tokens).pooler_output
            text = normalize(
                normalize(text, dim=-1).view(-1, self.templates, text.shape[-1]).mean(1), dim=-1
            )
        classes = text.detach().requires_grad_(self.both)
        if self.has_captions:
            for batch in batches:
                images = normalize(
                    self.model.get_image_features(pixel_values=batch.pixels).pooler_output, dim=-1
                )
                loss = ClipLoss()(images, classes[batch.labels], self.model.logit_scale.exp())
                (loss / len(batches)).backward()
            if self.both:
                text.backward(classes.grad)
            return
        pixels, labels = (
            torch.cat([getattr(batch, name) for batch in batches]) for name in ("pixels", "labels")
        )
        for piece, wanted in zip(
            pixels.split(self.at_once), labels.split(self.at_once), strict=True
        ):
            images = normalize(
                self.model.get_image_features(pixel_values=piece).pooler_output, dim=-1
            )
            logits = self.model.logit_scale.exp() * images @ classes.T
            (cross_entropy(logits, wanted, reduction="sum") / len(labels)).backward()
        if self.both:
            text.backward(classes.grad)


def measures(options: argparse.Namespace) -> dict[str, Callable[[Objective], Any]]:
    """The measures to compare, by name."""
    few = {
        "start": 0.5,
        "held_back": 0.0,
        "batch": options.batch,
        "strong_aug": options.batch,
        "precision": options.precision,
    }
    return {
        "path-barrier": lambda objective: path_barrier(
            objective, nodes=options.nodes, tolerance=1e9
        ),
        "path-point": lambda objective: Slopes(objective).at(0.5),
        "first-order": first_order,
        "auto": lambda objective: learned_coefficients(objective, steps=options.steps, **few),
        "first-step": lambda objective: learned_coefficients(objective, steps=1, **few),
        "look": lambda objective: _look(objective, options),
        "straggler-sparse": lambda objective: learned_sparse(objective, steps=options.steps, **few),
    }


def _look(objective: Objective, options: argparse.Namespace) -> None:
    loss_config = LossConfig(0.5, weak_aug=1.0, precision=options.precision)
    steps = lay_out(objective, 1, batch=options.batch).steps
    validate(objective, steps, loss_config)


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """Seconds, of the processor with one thread, and the highest memory meanwhile, in MB.

    ``private_mb`` leaves out the pages of mapped files, which the system can take back.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    begun = time.perf_counter()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    private, over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal private
        while not over.wait(0.02):
            private = max(private, memory_mb("self")["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = clock()
    try:
        function()
    finally:
        seconds = clock() - begin
        over.set()
        watcher.join()
    elapsed = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "elapsed": elapsed,
        "peak_mb": memory_mb("self")["VmHWM"],
        "private_mb": private,
    }


def compare(options: argparse.Namespace, paths: tuple[Path, Path]) -> dict[str, Any]:
    """Time every requested measure, between two joint gradient passes unless it runs alone."""
    told = Told()
    idle = memory_mb("self")["RssAnon"]
    objective = objective_for(paths, options, told)
    weights_mb = sum(parameter.nbytes for parameter in objective.weights.parameters.values()) / 1e6
    images_mb = sum(batch.pixels.nbytes for batch in objective.data.batches) / 1e6
    found: dict[str, Any] = {"weights_mb": weights_mb, "images_mb": images_mb, "idle_mb": idle}
    found["tokens"] = objective.criterion.prompts.tokens["input_ids"].shape[1]
    plain = None if options.alone else Plain(paths[1], options, both=options.towers == "both")
    if plain:
        timed(lambda: plain.gradient_pass(objective.data.batches[:1]))
    joint = [joint_seconds(plain, objective)]
    for name in options.only.split(","):
        told.begin, told.sentences = time.perf_counter(), []
        ours = measured(name, objective, options)
        joint.append(joint_seconds(plain, objective))
        if plain:
            ours["joint_pass_seconds"] = (joint[-2] + joint[-1]) / 2
            ours["joint_passes"] = ours["seconds"] / ours["joint_pass_seconds"]
        if plain and options.floor:
            of_pass = flops_of(plain.gradient_pass, objective.data.batches)
            ours["floor"] = flops_of(measures(options)[name], objective) / of_pass
        found[name] = ours | {"told": told.sentences}
        print(name, json.dumps(found[name]), flush=True)
    return found


def measured(name: str, objective: Objective, options: argparse.Namespace) -> dict[str, Any]:
    """Take one measure, and save its learned coefficients if requested."""
    results: list[Any] = []
    figures = timed(lambda: results.append(measures(options)[name](objective)))
    if options.coefficients and objective.data.context.is_main_process:
        save_file(results[0].coefficients, options.coefficients)
    return figures


def flops_of(function: Callable[[T], Any], argument: T) -> int:
    """Count the operations of a function's matrix products."""
    with FlopCounterMode(display=False) as counter:
        function(argument)
    return counter.get_total_flops()


def joint_seconds(plain: Plain | None, objective: Objective) -> float:
    """Take one joint gradient pass."""
    if plain is None:
        return 0.0
    seconds = timed(lambda: plain.gradient_pass(objective.data.batches))["seconds"]
    plain.model.zero_grad()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="folder of the checkpoints; a temporary folder by default"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--size", choices=sorted(_AT_ONCE), default="b32")
    parser.add_argument(
        "--towers", choices=("both", "vision"), default="both", help="which towers move"
    )
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--templates", type=int, default=1)
    parser.add_argument(
        "--captions", action="store_true", help="a caption for each image in place of classes"
    )
    parser.add_argument(
        "--words", type=int, default=0, help="further words of a prompt, one token each"
    )
    parser.add_argument(
        "--nodes", type=int, default=3, help="points of the path barrier on each half of the path"
    )
    parser.add_argument("--steps", type=int, default=2, help="steps of learning")
    parser.add_argument(
        "--batch", type=int, default=64, help="images of a step, and changed copies"
    )
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of learning"
    )
    parser.add_argument("--images-at-once", type=int, help="as for `merge`")
    parser.add_argument(
        "--memory", type=int, metavar="GB", help="assume that the machine has this much memory"
    )
    parser.add_argument(
        "--floor",
        action="store_true",
        help="also count the products of each measure, in those of a joint pass",
    )
    parser.add_argument("--alone", action="store_true", help="without plain transformers")
    parser.add_argument(
        "--coefficients", type=Path, metavar="FILE", help="write what was learned to this file"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="path-barrier,first-order,auto,straggler-sparse")
    parser.add_argument(
        "--against",
        type=checkout_folder,
        metavar="CHECKOUT",
        help="another checkout to compare with",
    )
    options = parser.parse_args()
    if options.against:
        write_results(options.json, {"against": compare_checkouts(options.against)})
        return
    torch.set_num_threads(options.threads)
    if options.memory:
        activations.usable_memory = lambda _device: options.memory << 30  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as temporary:
        paths = save_pair(
            options.folder or Path(temporary), options.size, both=options.towers == "both"
        )
        gc.collect()  # so that their memory is not kept
        with retain_freed_memory():
            found = compare(options, paths)
    settings = {
        key: value
        for key, value in vars(options).items()
        if key not in ("json", "folder", "coefficients", "against")
    }
    if os.environ.get("RANK", "0") == "0":
        write_results(options.json, {"settings": settings, **found})


if __name__ == "__main__":
    main()
