"""The merge as the last step of a training with transformers' `Trainer`."""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Any, Unpack

from torch.nn import Module
from transformers import TrainerCallback

from clipmerge.api._data import open_data
from clipmerge.api._in_memory import CheckpointLike, unwrap_model
from clipmerge.api._merge_effect import load_tasks
from clipmerge.api._results import MergeResult
from clipmerge.api.merge import merge, merge_request
from clipmerge.api.push import check_push
from clipmerge.checkpoint import open_checkpoint
from clipmerge.config import CallbackOptions, complete_options, with_options
from clipmerge.errors import UsageError
from clipmerge.files.paths import local_path
from clipmerge.images.local_files import local_inputs
from clipmerge.output.checks import check_output
from clipmerge.planning.recipe import RecipeLike
from clipmerge.progress import Progress
from clipmerge.request import MergeRequest, default_recipe, recipe_files
from clipmerge.run import RunCache
from clipmerge.types import StrPath

_LOG = logging.getLogger("clipmerge")
_FOLDER = "merged"
# Placeholder in a request for models that are not on disk yet.
_ZEROSHOT, _TRAINED = "in-memory/zeroshot", "in-memory/trained"


class RobustMergeCallback(TrainerCallback):  # type: ignore[misc]
    """Merge the trained model with its zero-shot self when training ends.

    Everything that can be checked is checked when training begins: the recipe, the zero-shot
    checkpoint, the output folder, and the rights to publish. What goes wrong afterwards is logged
    and kept in ``error``, and never raised, so that no training is lost. The model in memory is
    merged as it is at the end, which with ``load_best_model_at_end`` is the best one, and is not
    changed.

    The processor is by default the trainer's, or the one beside the zero-shot checkpoint.

    The accuracies before and after the merge are added to the trainer's ``log_history``, which ends
    up in ``trainer_state.json``.

    Attributes:
        result: The result of the merge; ``None`` until training ends.
        error: The reason why there is no merge, or why it was not published.

    Example:
        >>> callback = RobustMergeCallback(
        ...     "zeroshot", recipe="auto", data="val", push_to="acme/clip-cars"
        ... )
        >>> trainer = Trainer(  # doctest: +SKIP
        ...     model, args, train_dataset=cars, callbacks=[callback]
        ... )
    """

    @with_options(CallbackOptions)
    def __init__(
        self,
        zeroshot: CheckpointLike,
        recipe: RecipeLike | None = None,
        *,
        output: StrPath | None = None,
        push_to: str | None = None,
        **options: Unpack[CallbackOptions],
    ) -> None:
        """Keep the settings.

        Args:
            zeroshot: Checkpoint that training starts from: a folder, a file,
                ``org/name[@revision]``, or a model in memory other than the one being trained.
            recipe: In a form that `merge` accepts; by default the one that `merge` would choose.
            output: Folder to write; by default ``merged`` in the trainer's output folder.
            push_to: ``org/name`` on the Hub to publish the output to.
            **options: See `CallbackOptions`.

        Raises:
            ClipmergeError: If the recipe or an option cannot be used.
        """
        self.result: MergeResult | None = None
        self.error: Exception | None = None
        self._zeroshot = zeroshot
        self._output = output
        self._push_to = push_to
        self._options = options
        self._settings = complete_options(CallbackOptions, options)
        self._recipe = default_recipe(self._settings) if recipe is None else recipe
        merge_request(_ZEROSHOT, [_TRAINED], self._recipe, self._settings)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Check whatever would fail at the end."""
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise UsageError(
                "RobustMergeCallback: with DeepSpeed or FSDP no process holds the whole model;"
                " leave it out, and merge what was saved with `clipmerge merge`"
            )
        _find_clip(model)
        zeroshot = self._zeroshot
        # peft puts its factors into the model that it is given
        if any(part is zeroshot for part in model.modules()):
            raise UsageError(
                "RobustMergeCallback: zeroshot is the model that is trained, and will have changed"
                " by the end; give its folder or name on the Hub, or a copy.deepcopy of it"
            )
        name = _ZEROSHOT
        folder = self._output_folder(args)
        if isinstance(zeroshot, (str, os.PathLike)):
            name = os.fspath(zeroshot)
            open_checkpoint(name)
        request = merge_request(name, [_TRAINED], self._recipe, self._settings)
        check_output(
            folder,
            overwrite=self._settings["overwrite"],
            inputs=local_inputs(*request.checkpoints),
            read=[*request.files, *recipe_files(self._recipe)],
        )
        _open_images(request)
        if self._push_to is not None:
            check_push(self._push_to, folder)

    def on_train_end(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """Merge, log the effect, and publish."""
        folder = self._output_folder(args)
        progress = self._settings["progress"]
        # the trainer's, if it is one of images and texts: a tokenizer alone would leave out the
        # images
        processor = processing_class if hasattr(processing_class, "image_processor") else None
        options: CallbackOptions = {
            **self._options,
            "processor": self._settings["processor"] or processor,
        }
        try:
            self.result = merge(
                self._zeroshot,
                _without_factors(_find_clip(model)),
                self._recipe,
                output=folder,
                push=self._push_to,
                **options,
            )
        except Exception as error:  # whatever it is, the training must end with its result
            self.error = error
            left = (
                f"the merge is in {folder}"
                if (folder / "clipmerge.json").is_file()
                else "training itself succeeded"
            )
            _LOG.error(
                "RobustMergeCallback: %s (%s; `clipmerge merge` and `clipmerge push` go on from"
                " there)",
                error,
                left,
            )
            return
        verdict = self.result.verdict
        if not state.is_world_process_zero:
            return
        if verdict is not None:
            accuracies = {
                f"clipmerge/{source.name} {model}": accuracy.value
                for source in verdict.sources
                for model, accuracy in source.models.items()
            }
            state.log_history.append(
                {**accuracies, "step": state.global_step, "epoch": state.epoch}
            )
            progress.say(verdict.sentence)
        published = self.result.published
        progress.say(
            f"the merged model is in {folder}" + (f", and on {published.url}" if published else "")
        )

    def _output_folder(self, args: Any) -> Path:
        return Path(args.output_dir) / _FOLDER if self._output is None else local_path(self._output)


def _find_clip(model: Module) -> Module:
    """The model of transformers or open_clip that is trained: the module itself, or the first such
    part of it; a model of peft is returned whole.
    """
    model = unwrap_model(model)
    if _has_factors(model):
        return model
    for part in model.modules():
        is_transformers = hasattr(part, "save_pretrained") and hasattr(part, "config")
        if is_transformers or (hasattr(part, "visual") and hasattr(part, "encode_text")):
            return part
    raise UsageError(
        f"RobustMergeCallback: {type(model).__name__} is not a model of transformers or open_clip,"
        " and does not contain one; save its state dict, and merge it with `clipmerge merge`"
    )


def _open_images(request: MergeRequest) -> None:
    """Open the images that lie in files, so that a wrong name costs no training."""
    cache, progress = RunCache(), Progress()
    if isinstance(request.calibration.source, str):
        open_data(request, cache, progress)
    in_files = {name: source for name, source in request.ood.items() if isinstance(source, str)}
    load_tasks(in_files, progress, max_images=request.calibration.images, seed=request.seed)


def _has_factors(model: Module) -> bool:
    return hasattr(model, "merge_and_unload")  # peft's


def _without_factors(model: Module) -> Module:
    """A copy of peft's model whose factors are part of the weights; any other model itself."""
    if not _has_factors(model):
        return model
    adapted: Any = copy.deepcopy(model)
    return adapted.merge_and_unload()  # type: ignore[no-any-return]
