"""The result of a measure: statistics per layer, the loss along the path, and its own checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from clipmerge.planning.frozen import Frozen


class LossPath(Frozen):
    """Calibration loss along the straight path theta(alpha) = theta_0 + alpha * task_vector.

    Attributes:
        alphas: Points on the path, ascending, including 0, 0.5 and 1.
        losses: Mean cross-entropy at each point, in nats.
    """

    alphas: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def points(self) -> list[tuple[float, float]]:
        """Pairs (alpha, loss), sorted by alpha."""
        return sorted(zip(self.alphas, self.losses, strict=True))

    @property
    def barrier(self) -> tuple[float, float] | None:
        """Barrier L(1/2) - (L(0) + L(1)) / 2 and the endpoints' average, in nats; ``None`` if one
        was not measured.
        """
        losses = {round(alpha, 6): loss for alpha, loss in self.points}
        if not {0.0, 0.5, 1.0} <= losses.keys():
            return None
        average = (losses[0.0] + losses[1.0]) / 2
        return losses[0.5] - average, average

    @model_validator(mode="after")
    def _of_one_length(self) -> LossPath:
        if len(self.alphas) != len(self.losses):
            raise ValueError(f"{len(self.alphas)} alphas and {len(self.losses)} losses")
        return self


class Check(Frozen):
    """A self-test of an attribution: the sum of the layers' shares against the total, measured
    independently.

    Attributes:
        sum_of_layers: Sum over the layers.
        measured: The same quantity from forward passes alone.
    """

    sum_of_layers: float
    measured: float

    @property
    def relative_error(self) -> float:
        """|sum - measured| / |measured|; infinite if only the latter is zero."""
        gap = abs(self.sum_of_layers - self.measured)
        return gap / abs(self.measured) if self.measured else gap and float("inf")


class Mixture(Frozen):
    """A mixture theta_0 + sum_i weights_i * (theta_i - theta_0), evaluated on the calibration
    images.

    Attributes:
        weights: One factor per fine-tuned checkpoint.
        loss: Mean cross-entropy, in nats.
        accuracy: Share of the images recognised.
    """

    weights: tuple[float, ...]
    loss: float
    accuracy: float


class StatisticAbout(Frozen):
    """The interpretation of a statistic, as needed by tables and rules.

    Attributes:
        signed: Whether values below zero are meaningful. Signed values are compared directly,
            others by their logarithms; bars of signed values have one colour per sign.
        additive: Whether the sum over layers is meaningful, and shown for each tower.
        unit: Unit of the values, such as ``nats``; empty for a pure number.
        title: Heading of its column; empty for the name.
        symbol: Its symbol for narrow tables, such as ``B_l``; empty for none.
        about: One sentence about it, without the title.
    """

    signed: bool = False
    additive: bool = False
    unit: str = ""
    title: str = ""
    symbol: str = ""
    about: str = ""


class Statistic(StatisticAbout):
    """One number per layer, with its interpretation.

    Attributes:
        name: Its name in recipes and files, such as ``loss_drop``.
        values: Value by layer, the mean over images.
        batches: One value per calibration batch, by layer, for the bootstrap; empty if there are no
            batches.
    """

    name: str
    values: dict[str, float]
    batches: dict[str, tuple[float, ...]] = Field(default_factory=dict)

    @property
    def reading(self) -> StatisticAbout:
        """Its interpretation, without values."""
        return StatisticAbout(**{name: getattr(self, name) for name in StatisticAbout.model_fields})


class HeldBackChoice(Frozen):
    """The point chosen by images held back from learning, and the point of the straight path that
    it had to beat.

    Attributes:
        images: Number of images held back.
        alpha: The point, if it is on the straight path; ``None`` for a learned point.
        shrink: Share of the way from the start of learning to the learned coefficients; 0 for one
            coefficient for all that a sparse mask keeps.
        extrapolation: Share of the remaining way to the fine-tuned model.
        objective: Loss plus weighted distillation loss at the chosen point, in nats, on views and
            changed copies of the held-back images.
        accuracy: Share of the views that the chosen point recognises.
        path_alpha: The straight path's point: the nearest to 0.5 whose objective is not proven
            worse than the best, or where features of the path are distilled the nearest to where
            learning starts.
        path_objective: The objective at that point.
        finetuned_accuracy: Share of the views that the fine-tuned model recognises.
        gain: 95% interval of how much lower the objective of the best learned point is than that of
            the path's point, paired by image, in nats; ``None`` with a single image.
        corrupted_gain: The same under corruptions of other kinds than the changes that learning
            sees.
        distill_target: What learning distils: the zero-shot model's ``predictions``, its image
            ``features``, or ``path-features``, those of both the zero-shot model and the point
            where learning started.
        zeroshot_skill: Share of the uncertainty about the labels that the zero-shot predictions
            remove: McFadden's R2, 1 - loss / log(classes); ``None`` if it was not asked.
        finetuned_rank: Effective rank of the fine-tuned model's image features on the calibration
            images, as a share of the zero-shot model's; ``None`` if it was not asked.
        train_accuracy: Share of the views of its own images that learning recognised in its last
            steps.
    """

    images: int
    alpha: float | None
    shrink: float
    extrapolation: float
    objective: float
    accuracy: float
    path_alpha: float
    path_objective: float
    finetuned_accuracy: float
    gain: tuple[float, float] | None = None
    corrupted_gain: tuple[float, float] | None = None
    train_accuracy: float | None = None
    distill_target: str = "predictions"
    zeroshot_skill: float | None = None
    finetuned_rank: float | None = None


def takes_learned(trace: Mapping[str, Sequence[float]], choice: HeldBackChoice | None) -> bool:
    """Whether a merge takes learned coefficients, not a point of the straight path."""
    return any(trace.values()) and not (choice and choice.alpha is not None)


class Measurements(Frozen):
    """The result of one measure.

    Attributes:
        measure: Name of the measure.
        statistics: Statistics with one number per layer; empty if the measure is not about single
            layers.
        batch_sizes: Images in each calibration batch.
        path: Loss along the path, if the measure evaluates it.
        mixtures: The mixtures tried, in order, if the measure tries any.
        checks: Self-tests by statistic.
        notes: Notes for the user, one line each.
        trace: Losses at every step of a measure that learns, by name.
        choice: The choice of the images held back from learning, if the measure holds some back.
        coefficients: Learned coefficients by parameter, float32 on the CPU; never part of the JSON.
        gradients: Mean gradient along the path by parameter, float32 on the CPU; never part of the
            JSON.
        tensors: Other tensors, by statistic and parameter, float32 on the CPU; never part of the
            JSON.
    """

    measure: str
    statistics: tuple[Statistic, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    path: LossPath | None = None
    mixtures: tuple[Mixture, ...] = ()
    checks: dict[str, Check] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trace: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    choice: HeldBackChoice | None = None
    coefficients: SkipJsonSchema[dict[str, Any]] = Field(
        default_factory=dict, exclude=True, repr=False
    )
    gradients: SkipJsonSchema[dict[str, Any]] = Field(
        default_factory=dict, exclude=True, repr=False
    )
    tensors: SkipJsonSchema[dict[str, dict[str, Any]]] = Field(
        default_factory=dict, exclude=True, repr=False
    )

    @property
    def layers(self) -> dict[str, dict[str, float]]:
        """Values by layer and statistic."""
        table: dict[str, dict[str, float]] = {}
        for statistic in self.statistics:
            for layer, value in statistic.values.items():
                table.setdefault(layer, {})[statistic.name] = value
        return table

    def __getitem__(self, name: str) -> Statistic:
        """Return the statistic of this name."""
        return {statistic.name: statistic for statistic in self.statistics}[name]
