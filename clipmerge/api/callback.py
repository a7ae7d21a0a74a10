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

    What can be checked is checked when training begins: the recipe, the zero-shot checkpoint, the
    images, the output folder, and the rights to publish. What goes wrong afterwards is logged and
    kept in ``error``, and never raised, so that no training is lost. The model in memory is merged
    as it is at the end, which with ``load_best_model_at_end`` is the best one, and is not changed.

    The verdict and its accuracies are added to the trainer's ``log_history``, which ends up in
    ``trainer_state.json``.

    Attributes:
        result: The result of the merge; ``None`` until training ends.
        error: The reason why there is no merge, or why it was not published.

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
        """Keep the settings.

        Args:
            zeroshot: Checkpoint that training starts from: a folder, a file,
                ``org/name[@revision]``, or a model in memory other than the one being trained.
            recipe: In a form that `merge` accepts; by default the one that `merge` would choose.
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
        """Check everything that would make the merge fail at the end."""
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise UsageError(
                "RobustMergeCallback: with DeepSpeed or FSDP no process holds the whole model;"
                " leave it out, and merge what was saved with `clipmerge merge`"
            )
        _find_clip(model)
        # peft puts its factors into the model that it is given
        if any(part is self._zeroshot for part in model.modules()):
            raise UsageError(
                "RobustMergeCallback: zeroshot is the model that is trained, and will have changed"
                " by the end; give its folder or name on the Hub, or a copy.deepcopy of it"
            )
        if isinstance(self._zeroshot, (str, os.PathLike)):
            open_checkpoint(os.fspath(self._zeroshot))
        options = self._checked
        check_output_folder(self._folder(args), options, self._zeroshot)
        if options.data is not None:
            from clipmerge.images.dataset import open_images

            open_images(options.data, options.classes, columns=options.columns)
            for shift in dict(options.ood).values():
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
        # the trainer's, if it is one of images and texts: a tokenizer alone would leave out the
        # images
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
        except Exception as error:  # whatever it is, the training must end with its result
            self.error = error
            is_merged = (folder / "clipmerge.json").is_file()
            left = f"the merge is in {folder}" if is_merged else "training itself succeeded"
            _LOG.error("RobustMergeCallback: %s (%s)", error, left)
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
    """Find the model of transformers or open_clip that is trained: the module itself or the first
    such part of it. A model of peft is returned whole.
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
    """For a model of peft, a copy with the factors merged into the weights; any other model
    unchanged.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    adapted: Any = copy.deepcopy(model)
    return adapted.merge_and_unload()  # type: ignore[no-any-return]
