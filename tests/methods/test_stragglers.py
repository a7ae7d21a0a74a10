"""The straggler rule on made-up statistics: it finds planted stragglers, and none in placebo
pairs."""

import numpy as np
import pytest

from clipmerge.planning.measurements import Measurements, Statistic
from clipmerge.planning.stragglers import find_stragglers

WIDTH, BLOCKS, BATCHES = 768, 12, 8


def sizes_of() -> dict[str, int]:
    halves = {"attn": 4 * WIDTH**2, "mlp": 8 * WIDTH**2}
    sizes = {"vision.embeddings": 3072 * WIDTH, "vision.pre_norm": 2 * WIDTH}
    sizes |= {f"vision.{i}.{half}": size for i in range(BLOCKS) for half, size in halves.items()}
    return {**sizes, "vision.norm": 2 * WIDTH, "vision.projection": 512 * WIDTH}


def measure(
    seed: int,
    planted: dict[str, float] | None = None,
    *,
    statistic: str = "barrier",
    noise: float = 0.1,
) -> Measurements:
    """A made-up statistic: covariates, each layer's own part, and noise between batches."""
    rng = np.random.default_rng(seed)
    sizes = sizes_of()
    y = np.array([0.2 * np.log(size) + 0.5 * name.endswith("mlp") for name, size in sizes.items()])
    y += rng.normal(size=len(sizes))
    y += [(planted or {}).get(layer, 0.0) for layer in sizes]
    values = y[:, None] + noise * rng.normal(size=(len(sizes), BATCHES))
    if statistic == "sharpness":
        values = np.exp(values)
    return record(statistic, dict(zip(sizes, values.tolist(), strict=True)))


def record(
    statistic: str, values: dict[str, list[float]], sizes: tuple[int, ...] = (16,) * BATCHES
) -> Measurements:
    means = {layer: float(np.average(row, weights=sizes)) for layer, row in values.items()}
    rows = {layer: tuple(row) for layer, row in values.items()}
    signed = statistic in ("barrier", "loss_drop")
    made_up = Statistic(name=statistic, values=means, batches=rows, signed=signed)
    return Measurements(measure="made-up", statistics=(made_up,), batch_sizes=sizes)


def find(measurements: Measurements, **options: float) -> tuple[str, ...]:
    statistic = measurements.statistics[0].name
    return find_stragglers(measurements, sizes_of(), statistic=statistic, **options).names  # type: ignore[arg-type]


@pytest.mark.uncounted
def test_power_and_false_flags() -> None:
    """At least 80% of layers that lie 10 spreads out are found; at most 5% of placebo pairs have a
    flag."""
    pairs, layers = 56, list(sizes_of())
    placebo = sum(bool(find(measure(seed), bootstraps=20)) for seed in range(pairs))
    found = 0
    for seed in range(pairs):
        layer = layers[seed % len(layers)]
        found += layer in find(measure(1000 + seed, {layer: 10.0}), bootstraps=20)
    # at a true rate of 5% the count is 2.8, give or take 1.6
    assert placebo <= 2.8 + 2 * 1.6
    assert found >= 0.8 * pairs


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["sharpness", "barrier"])
def test_several_stragglers_are_found_together_and_a_layer_far_below_is_none(
    statistic: str,
) -> None:
    planted = {"vision.3.attn": 15.0, "vision.3.mlp": 14.0, "vision.9.mlp": 12.0}
    assert find(measure(0, planted, statistic=statistic)) == tuple(planted)
    assert find(measure(0, {"vision.3.attn": -15.0}, statistic=statistic)) == ()


def test_a_layer_that_stands_out_in_one_batch_is_not_stable() -> None:
    rows = {name: [*row] for name, row in measure(0, noise=0.01)["barrier"].batches.items()}
    rows["vision.5.mlp"][3] += 150.0
    found = find_stragglers(record("barrier", rows), sizes_of())
    assert found.scores["vision.5.mlp"]["z"] > 7
    # a batch is missing from a third of the resamples: (7/8)^8
    assert found.scores["vision.5.mlp"]["stability"] == pytest.approx(0.66, abs=0.1)
    assert found.names == ()
    assert "vision.5.mlp stands out most in barrier" in found.found
    assert find_stragglers(record("barrier", rows), sizes_of(), stability=0.4).names == (
        "vision.5.mlp",
    )


@pytest.mark.parametrize("value", [0.0, 1e-3, 5.0])
@pytest.mark.parametrize("statistic", ["barrier", "sharpness"])
def test_equal_layers_have_no_straggler(value: float, statistic: str) -> None:
    found = find_stragglers(
        record(statistic, {layer: [value] * BATCHES for layer in sizes_of()}),
        sizes_of(),
        statistic=statistic,
    )
    assert found.names == ()
    assert found.found.startswith("no ")
    values = {layer: [value + 1.0 * (layer == "vision.5.mlp")] * BATCHES for layer in sizes_of()}
    assert find(record(statistic, values)) == ()  # nor does a spread of zero but for one layer
    # and few layers are too few
    found = find_stragglers(
        record("barrier", {"vision.0.attn": [1.0], "vision.0.mlp": [9.0]}, (4,)), sizes_of()
    )
    assert found.names == ()
    assert "2 layers are too few" in found.found
