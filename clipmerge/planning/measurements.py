"""Results of measures: statistics of the layers, the loss along the path, and self-tests."""

from __future__ import annotations

import sys

from pydantic import Field

from clipmerge.planning import Frozen
from clipmerge.types import Json, Names, Shape


class LossPath(Frozen):
    """Calibration loss along the straight path theta(alpha) = theta_0 + alpha * task_vector.

    Attributes:
        alphas: Points on the path, ascending, including 0, 0.5 and 1.
        losses: Mean cross-entropy at each point, in nats.
    """

    alphas: tuple[float, ...]
    losses: tuple[float, ...]


class Check(Frozen):
    """A self-test of a measure that divides a quantity among the layers: their shares should add up
    to the whole.

    Attributes:
        sum_of_layers: Sum of the layers' shares.
        measured: The whole, measured by forward passes alone.
    """

    sum_of_layers: float
    measured: float

    @property
    def relative_error(self) -> float:
        """|sum_of_layers - measured| / |measured|; 0 if both are zero."""
        gap = abs(self.sum_of_layers - self.measured)
        return gap / max(abs(self.measured), sys.float_info.min)


class Mixture(Frozen):
    """Loss and accuracy of theta_0 + sum_i weights_i * (theta_i - theta_0) on the calibration
    images.

    Attributes:
        weights: One factor per fine-tuned checkpoint.
        loss: Mean cross-entropy, in nats.
        accuracy: Share of the images that are recognised.
    """

    weights: tuple[float, ...]
    loss: float
    accuracy: float


class StatisticAbout(Frozen):
    """How to read a statistic.

    Attributes:
        signed: Whether values below zero are meaningful. Signed values are compared directly, and
            unsigned values by their logarithms.
        unit: Unit of the values, such as ``nats``; empty for a pure number.
        title: Heading of its column; if empty, the name.
        about: One sentence that explains it, without the title.
    """

    signed: bool = False
    unit: str = ""
    title: str = ""
    about: str = ""


class Statistic(StatisticAbout):
    """A statistic: one number per layer.

    Attributes:
        name: The name in recipes and files, such as ``loss_drop``.
        values: Value by layer, the mean over images.
        batches: One value per calibration batch, by layer, for the bootstrap; empty if there are no
            batches.
    """

    name: str
    values: dict[str, float]
    batches: dict[str, tuple[float, ...]] = Field(default_factory=dict)


class BackoffChoice(Frozen):
    """The share of the way back to the fine-tuned model, chosen by images held back from learning.

    Attributes:
        images: Number of these images.
        backoff: Share of the way from the learned coefficients to the fine-tuned model. It is 1,
            the fine-tuned model itself, if no smaller share keeps the accuracy.
        accuracy: Share of these images that the chosen merge recognises, a mean over classes.
        finetuned_accuracy: The same for the fine-tuned model.
    """

    images: int
    backoff: float
    accuracy: float
    finetuned_accuracy: float


class Observations(Frozen):
    """Results of a measure that the record of a merge keeps.

    Attributes:
        path: Loss along the path, if the measure evaluates it.
        trace: Losses at every step of a measure that learns, by name.
        choice: The choice of the images held back from learning, if the measure holds some back.
        checks: Self-tests by statistic.
    """

    path: LossPath | None = None
    trace: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    choice: BackoffChoice | None = None
    checks: dict[str, Check] = Field(default_factory=dict)


class Measurements(Observations):
    """The result of one measure.

    Attributes:
        measure: Name of the measure.
        statistics: Statistics with one number per layer; empty if the measure is not about single
            layers.
        batch_sizes: Images in each calibration batch.
        mixtures: The mixtures tried, in order, if the measure tries any.
        notes: Notes for the user.
        coefficients: Learned coefficients by parameter, float32 on the CPU; not in the JSON.
        gradients: Mean gradient along the path by parameter, float32 on the CPU; not in the JSON.
        tensors: Other tensors, by statistic and parameter, float32 on the CPU; not in the JSON.
    """

    measure: str
    statistics: tuple[Statistic, ...] = ()
    batch_sizes: Shape = ()
    mixtures: tuple[Mixture, ...] = ()
    notes: Names = ()
    coefficients: Json = Field(default_factory=dict, exclude=True, repr=False)
    gradients: Json = Field(default_factory=dict, exclude=True, repr=False)
    tensors: dict[str, Json] = Field(default_factory=dict, exclude=True, repr=False)

    @property
    def layers(self) -> dict[str, dict[str, float]]:
        """Values by layer and statistic."""
        table: dict[str, dict[str, float]] = {}
        for statistic in self.statistics:
            for layer, value in statistic.values.items():
                table.setdefault(layer, {})[statistic.name] = value
        return table

    @property
    def observed(self) -> Json:
        """The fields of `Findings` that a measure fills, with their values."""
        shared = {name: getattr(self, name) for name in Observations.model_fields}
        return {"statistics": {each.name: each for each in self.statistics}, **shared}

    def __getitem__(self, name: str) -> Statistic:
        """Return the statistic with this name."""
        return {statistic.name: statistic for statistic in self.statistics}[name]


class CalibrationRecord(Frozen):
    """The images that a measure used.

    Attributes:
        source: The source as the user wrote it.
        revision: The commit that a data set of the Hub resolved to.
        images: Number of images drawn.
        requested: Number of images asked for, if further images were held back to judge the merge;
            else ``None``.
        duplicates: Number of drawn images that were left out as copies of others.
        classes: Number of classes.
        classes_with_images: Number of classes with at least one of these images.
        batch_size: Images per batch.
        templates: Prompt templates.
        seed: Seed of the draw.
        ood: Number of images of each ``--ood`` source that taught.
    """

    source: str
    revision: str | None = None
    images: int
    requested: int | None = None
    duplicates: int = 0
    classes: int
    classes_with_images: int = 0
    batch_size: int
    templates: Names
    seed: int
    ood: dict[str, int] = Field(default_factory=dict)
