"""Merge at the end of training with transformers' `Trainer`."""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Any

from torch.nn import Module
from transformers import TrainerCallback

from clipmerge.api._in_memory import unwrap_model
from clipmerge.api._pair import CheckpointLike
from clipmerge.api._write import MergeResult
from clipmerge.api.merge import check_output_folder, choose_recipe, merge
from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import UsageError
from clipmerge.files import local_path
from clipmerge.options import MergeOptions
from clipmerge.planning.recipe import RecipeLike
from clipmerge.progress import Progress, default_progress
from clipmerge.types import StrPath

_LOG = logging.getLogger("clipmerge")


class RobustMergeCallback(TrainerCallback):  # type: ignore[misc]
    """Merge the trained model with its zero-shot self when training ends.

    The recipe, the zero-shot checkpoint, the images, the output folder and the rights to publish
    are checked when training begins. Later errors are logged and kept in ``error``, and never
    raised, so that no training is lost. The merge uses the model that is in memory at the end
    (with ``load_best_model_at_end``, the best one), and does not change it.

    The verdict and its accuracies are added to the trainer's ``log_history``, which the trainer
    saves in ``trainer_state.json``.

    Attributes:
        result: The result of the merge; ``None`` until training ends.
        error: The error that prevented the merge or its publication, if any.

    Example:
        >>> callback = RobustMergeCallback("zeroshot", recipe="auto", data="val")
        >>> trainer = Trainer(  # doctest: +SKIP
        ...     model, args, train_dataset=cars, callbacks=[callback]
        ... )
    """

    def __init__(
        self,
        zeroshot: CheckpointLike,
        recipe: RecipeLike | None = None,
        *,
        output: StrPath | None = None,
        processor: Any = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        """Check the options, and load the recipe.

        Args:
            zeroshot: Checkpoint that training starts from: a folder, a file,
                ``org/name[@revision]``, or a model in memory other than the one in training.
            recipe: See `merge`.
            output: Folder to write; by default ``merged`` in the trainer's output folder.
            processor: By default the trainer's, or the one beside the zero-shot checkpoint.
            progress: See `merge`.
            **options: The fields of `clipmerge.options.MergeOptions`.

        Raises:
            ClipmergeError: If the recipe or an option cannot be used.
        """
        self.result: MergeResult | None = None
        self.error: Exception | None = None
        self._zeroshot = zeroshot
        self._output = output
        self._processor = processor
        self._progress = progress or default_progress()
        self._options = options  # `merge` checks them again
        self._checked = MergeOptions.of(options)
        self._recipe = choose_recipe(recipe, self._checked, self._progress)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Check the inputs and the output of the merge before training."""
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise UsageError(
                "RobustMergeCallback: with DeepSpeed or FSDP no process holds the whole model;"
                " leave it out, and merge what was saved with `clipmerge merge`"
            )
        _find_clip(model)
        # peft puts its factors into the model that it is given, which may be the zero-shot model
        if any(part is self._zeroshot for part in model.modules()):
            raise UsageError(
                "RobustMergeCallback: zeroshot is the model that is trained, and will have changed"
                " by the end; give its folder or name on the Hub, or a copy.deepcopy of it"
            )
        if isinstance(self._zeroshot, (str, os.PathLike)):
            open_checkpoint(os.fspath(self._zeroshot))
        options = self._checked
        check_output_folder(self._folder(args), options, [self._zeroshot])
        if options.data is not None:
            from clipmerge.images.dataset import open_images

            open_images(options.data, options.classes, columns=options.columns)
            for shift in options.ood.values():
                open_images(shift)

    def on_train_end(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """Merge, and log the verdict."""
        folder = self._folder(args)
        # the trainer may have a tokenizer alone, without an image processor
        processor = processing_class if hasattr(processing_class, "image_processor") else None
        try:
            self.result = merge(
                self._zeroshot,
                _without_factors(_find_clip(model)),
                self._recipe,
                output=folder,
                processor=self._processor or processor,
                progress=self._progress,
                **self._options,
            )
        except Exception as error:  # training must end normally, whatever the error is
            self.error = error
            _LOG.error("RobustMergeCallback: %s (training itself succeeded)", error)
            return
        verdict = self.result.verdict
        if verdict is not None and state.is_world_process_zero:
            is_better = verdict.recommendation not in ("use-alpha", "keep-finetuned")
            (self._progress.say if is_better else self._progress.warn)(verdict.sentence)
            accuracies = {
                f"clipmerge/{source.name}_accuracy_{model}": estimate.value
                for source in verdict.sources
                for model, estimate in source.models.items()
            }
            entry = {"clipmerge/verdict": verdict.recommendation, **accuracies}
            state.log_history.append({**entry, "step": state.global_step, "epoch": state.epoch})
        self._progress.say(f"the merged model is in {folder}")

    def _folder(self, args: Any) -> Path:
        return (
            Path(args.output_dir) / "merged" if self._output is None else local_path(self._output)
        )


def _find_clip(model: Module) -> Module:
    """Return the model of transformers or open_clip in a trained module: the module itself, or the
    first of its parts that is such a model. A model of peft is returned whole.
    """
    model = unwrap_model(model)
    if hasattr(model, "merge_and_unload"):  # peft's
        return model
    for part in model.modules():
        is_transformers = hasattr(part, "save_pretrained") and hasattr(part, "config")
        if is_transformers or (hasattr(part, "visual") and hasattr(part, "encode_text")):
            return part
    raise UsageError(
        f"RobustMergeCallback: {type(model).__name__} is not a model of transformers or open_clip,"
        " and does not contain one; save its state dict, and merge it with `clipmerge merge`"
    )


def _without_factors(model: Module) -> Module:
    """Return a copy of a peft model with its adapter merged into the weights. Any other model is
    returned as it is.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    adapted: Any = copy.deepcopy(model)
    return adapted.merge_and_unload()  # type: ignore[no-any-return]
