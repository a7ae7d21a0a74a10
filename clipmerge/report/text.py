"""All sentences about a merge: each kind of finding in words, the same on terminal, page, card and
in JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from string import Formatter
from typing import Any

from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.errors import counted, shorten
from clipmerge.finding import Finding


def text_of(finding: Finding | str) -> str:
    """A finding in words; one of an unknown kind, or with other numbers, as it is.

    Example:
        >>> text_of(Finding.of("base-alpha")), text_of(Finding.of("unheard-of", count=2))
        ('base alpha', 'unheard-of (count 2)')
    """
    if isinstance(finding, str):
        return finding
    sentence = SENTENCES.get(finding.kind)
    return str(finding) if sentence is None else _say(sentence, finding)


def _say(sentence: str | Callable[..., str], finding: Finding) -> str:
    """A sentence with the numbers of a finding; if they do not fit it, the finding as it is."""
    try:
        if isinstance(sentence, str):
            return _FORMAT.vformat(sentence, (), finding.values)
        return sentence(**finding.values)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return str(finding)  # a record that was edited, or written by another version


def texts_of(findings: Iterable[Finding | str]) -> list[str]:
    """Several findings in words."""
    return [text_of(finding) for finding in findings]


# The decision, and the settings of the layers


# The measured effect


# Other tasks


# Sweeps


def signed_points(share: float) -> str:
    """A difference of shares in points, with its sign.

    Example:
        >>> signed_points(0.0123), signed_points(-0.0001)
        ('+1.2', '0.0')
    """
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _weights_inside_text(file: str, inside: str, others: Sequence[str]) -> str:
    beside = ""
    if others:
        beside = f"; {shorten(others)} holds weights too (`state_key` {others[0]} takes them)"
    return f"{file}: the weights are those under {inside}{beside}"


def _inner_folder_text(source: str, library: str, folder: str) -> str:
    pipeline = (
        "; its pipeline loads a merge by CLIPTextModel.from_pretrained, and measures of images with"
        " classes say nothing about the pictures that it makes"
    )
    is_text = folder.startswith("text_encoder")
    return (
        f"{source}: is a folder of {library}, and its CLIP is {folder}{pipeline if is_text else ''}"
    )


def _unwrapped_text(
    file: str,
    inside: Sequence[str],
    copies: Sequence[str],
    averages: int,
    others: int,
    examples: Sequence[str],
) -> str:
    attributes = " and ".join(name or "no name" for name in inside)
    parts = [f"the CLIP is what lies under {attributes}"] if any(inside) else []
    if copies:
        parts.append(
            f"{shorten(copies)} holds the same parameters (`state_key` {copies[0]} takes it)"
        )
    whats = ("an average of weights", "not part of a CLIP")
    for number, what, names in zip((averages, others), whats, examples, strict=True):
        if number:
            tensors = counted(number, "tensor", "tensors")
            parts.append(f"left out {tensors} beside it, {what}: {names}")
    return f"{file}: {'; '.join(parts)}"


def _timm_text(source: str, head: bool) -> str:
    classifier = " and its head as a classifier" if head else ""
    return f"{source}: is a ViT of timm, read as a vision tower{classifier}"


def _no_config_text(source: str, config: str) -> str:
    named = "; a merge with `model` names it" if config == OPEN_CLIP_CONFIG else ""
    return f"{source}: no {config} beside it, so its activation could not be compared{named}"


def _other_encoder_text(
    source: str, encoder: str, tensors: int, changed: int | None, share: float | None
) -> str:
    end = ""
    if changed == 0:
        end = "; it is the same in both"
    elif changed is not None:
        end = (
            f"; fine-tuning changed {changed} of its {tensors} tensors, {share:.1%} of the change"
            f" of both (sum of squares), so merge it too (#{encoder}), and replace both in a copy"
            " of the file"
        )
    return f"{source}: its other text encoder, {encoder}, is not merged{end}"


def _shared_images_text(source: str, other: str, images: int, example: str, measured: bool) -> str:
    therefore = ", which flatters recipes that measure" if measured else ""
    also = counted(images, "image is", "images are")
    return f"{source}: {also} also in {other} ({example}){therefore}"


def _not_copied_text(source: str, files: Sequence[str], reason: str) -> str:
    why = {
        "not-read": "not among the files that loaders read",
        "link": "not a file of this folder",
        "not-json": "it cannot be read as JSON",
    }
    return f"{source}: {shorten(files)} not copied: {why[reason]}"


def _unrelated_text(
    zeroshot: str, finetuned: str, evidence: Sequence[str], *, swapped: bool = False
) -> str:
    order = "the two are probably swapped: " if swapped else ""
    return (
        f"{zeroshot} is probably not what {finetuned} started from ({order}{'; '.join(evidence)})"
    )


def _equal_models_text(first: str, second: str, with_zeroshot: bool) -> str:
    effect = "merging them changes nothing" if with_zeroshot else "that model counts twice"
    return f"{first} and {second} are equal in all weights that can be merged, so {effect}"


def _accuracy_text(
    model: str,
    accuracy: float,
    images: int,
    classes: int,
    prompt: str,
    source: str = "",
    captions: bool = False,
    keep: bool = False,
) -> str:
    whose = f"{source}: " if source else ""
    who = f"the {model} model" if model else "the model"
    of = "" if captions else f" of {classes} classes"
    how = " by their captions" if captions else ""
    return (
        f"{whose}{who} recognises {accuracy:.1%} of {images} images{of}{how} (chance is"
        f" {1 / classes:.1%}); a {'caption' if captions else 'prompt'} was '{prompt}'"
    )


def _at_chance_text(*, model: str = "fine-tuned", **values: Any) -> str:
    if values.get("keep"):
        advice = "such a score tells nothing, so the advice does not count it"
    elif values.get("captions"):
        advice = (
            "give captions that are those of the images, in a language that the model knows"
            " (`caption_column` names others)"
        )
    else:
        advice = (
            "pass the names of the classes, in English, with `classes`, or `template`, or give"
            " images of its own task"
        )
    return f"{_accuracy_text(model, **values)}; {advice}"


def _odd_names_text(look: str, example: str, **values: Any) -> str:
    looks = {
        "numbers": "are bare numbers",
        "wordnet": "are WordNet ids",
        "numbered": "begin with numbers",
        "splits": "are those of splits, so give the folder of one split",
        "pattern": "differ by a few letters or digits only",
    }
    names = "captions" if values.get("captions") else "class names"
    return f"the {names} {looks[look]}, such as '{example}', and {_at_chance_text(**values)}"


def _zeroshot_at_chance_text(**values: Any) -> str:
    advice = (
        "it may not know what they show, or not in these words"
        if values.get("captions")
        else "it may not know these classes, or not by these names"
    )
    return f"{_accuracy_text('zero-shot', **values)}; {advice}"


def _files_left_out_text(source: str, kinds: str, inside: int) -> str:
    parts = [f"files that are not images ({kinds})"] if kinds else []
    parts += [f"images in folders inside class folders ({inside})"] if inside else []
    return f"{source}: left out {' and '.join(parts)}"


class _Format(Formatter):
    """Formats a list as names, and a number of things, or a list, by ``{images:image/images}`` as
    what is counted.
    """

    def format_field(self, value: Any, format_spec: str) -> str:
        one, slash, several = format_spec.partition("/")
        if slash:
            return counted(value if isinstance(value, int) else len(value), one, several)
        shown = shorten(value) if isinstance(value, list) else value
        return str(super().format_field(shown, format_spec))


_FORMAT = _Format()
#: The sentence of each kind of finding: a format of its values, or a function of them.
SENTENCES: dict[str, str | Callable[..., str]] = {
    "unmeasurable": "{what} could not be measured: {why}",
    "not-compared": (
        "{source}: its images are preprocessed, so they were not compared with those of other"
        " sources"
    ),
    "copies": (
        "{source}: {images:image is a copy/images are copies} of others in it; each counts in its"
        " accuracy"
    ),
    "shared-images": _shared_images_text,
    "empty-captions": "{source}: left out {captions:empty caption/empty captions}",
    "recall": (
        "{source}: accuracy stands for recall at 1, per image the mean of image to text and of the"
        " share of its captions that find it, among {images:image/images} with"
        " {captions:caption/captions}"
    ),
    "not-copied": _not_copied_text,
    "captions": lambda source, origin: (
        f"{source}: images with captions{f', from {origin}' if origin else ''}"
    ),
    "unused-classes": (
        "{source}: the names of `classes` are not used, because its images have captions (classes"
        " with `label_column`)"
    ),
    "many-classes": (
        "{source}: {classes} classes for {images} images; are the labels captions? Then give"
        " `caption_column` {column}"
    ),
    "no-labels": (
        "{source}: its images have no labels; the fine-tuned model's answers stand in for them"
    ),
    "classes-taken": (
        "{source}: has classes ('{label}') and captions ('{caption}'); the classes are taken"
        " (captions with `caption_column` {caption})"
    ),
    "class-folders-taken": (
        "{source}: has class folders, and captions beside images; the classes are taken (captions"
        " with `caption_column` txt)"
    ),
    "lone-texts": (
        "{source}: left out {texts:text without its image/texts without their images} ({examples})"
    ),
    "files-left-out": _files_left_out_text,
    "sampled-copies": (
        "{source}: {images:sampled image is a copy/sampled images are copies} of others and left"
        " out, so that none is both seen and held back"
    ),
    "example-prompt": lambda prompt, source, captions: (
        f"{'captions' if captions else 'prompts'}{f' of {source}' if source else ''} look like"
        f" '{prompt}'"
    ),
    "unreadable": (
        "{source}: left out {images:image/images} (of {total}) that cannot be read: {examples}"
    ),
    "numbered-classes": (
        "{source}: its classes are numbered, such as '{example}'; prompts have the name without the"
        " number, '{name}'"
    ),
    "wordnet-classes": (
        "{source}: its classes are WordNet ids, such as '{example}'; prompts have ImageNet's names,"
        " '{name}'"
    ),
    "labels-from-one": "{source}: the labels are 1 to {names}, so the first name is that of 1",
    "shared-names": (
        "{source}: gives several classes the same name {examples}; a model always predicts the"
        " first of them"
    ),
    "unit-floats": (
        "{source}: its floats lie within [0, 1], as ToTensor() leaves them, so they are taken as"
        " images and preprocessed for the model"
    ),
    "not-shuffled": (
        "{source}: its first {images} images show {seen} of {classes} classes; shuffle it"
    ),
    "only-split": "{source}: reading its only split, {split}",
    "few-classes-so-far": (
        "{source}: {read} of {shards} shards hold {classes} classes, too few for a balanced sample;"
        " reading further shards"
    ),
    # notes about a measurement, and about the files of an output
    "config-made": (
        "the fine-tuned checkpoint has no {config}; one was made from the zero-shot one's"
    ),
    "side-files-copied": (
        "the fine-tuned checkpoint has no {config}; the zero-shot one's side files were copied"
    ),
    "part-copied": "the fine-tuned checkpoint has no {part}; the zero-shot one's was copied",
    "no-preprocessing": (
        "{source}: has no preprocessor_config.json; OpenAI's mean and deviation were written"
    ),
    "no-tokenizer": (
        "{source}: has no tokenizer, and its vocabulary is not CLIP's; OpenCLIP will need one"
    ),
    "own-tokenizer": (
        "the tokenizer is not CLIP's own: text_cfg.hf_tokenizer_name is '{name}'; make it ORG/NAME"
        " when you publish"
    ),
    "other-resizing": (
        "images are resized to {edges} there, but OpenCLIP resizes to the model's {size} pixels:"
        " accuracy may differ a little"
    ),
    "other-filter": (
        "images are resampled with Pillow's filter {filter} there, which OpenCLIP lacks; bicubic"
        " was set"
    ),
    # notes about checkpoints
    "cached-commit": "{why}: {source} is the cached commit {commit}, not checked against the Hub",
    "activation-by-name": ("taken as {model} with GELU; weights trained from OpenAI's are {other}"),
    "weights-inside": _weights_inside_text,
    "read-into-memory": (
        "{file}: is read into memory; saved again as .pt by torch 1.6 or newer, it would be mapped"
    ),
    "formed-weights": (
        "{source}: {weights:weight is/weights are} formed from the parts that it holds ({kinds});"
        " the output has plain weights"
    ),
    "inner-folder": _inner_folder_text,
    "unwrapped": _unwrapped_text,
    "timm": _timm_text,
    "converted-layout": "{source}: is converted to the layout of {layout}, like {like}",
    "other-base": (
        "{source}: was trained on '{trained_on}' and is applied to {base}; make sure they are the"
        " same"
    ),
    "other-head": (
        "{source}: its head has {rows} rows, the fine-tuned one's {finetuned_rows}; it is left out"
    ),
    "no-config": _no_config_text,
    "built-head": (
        "the fine-tuned checkpoint is a classifier: the zero-shot side of its head is built from"
        " class prompts, and the output is a classifier too"
    ),
    "unchanged-head": (
        "the fine-tuned checkpoint is a classifier: its head is kept unchanged, and the output is a"
        " classifier too, without the rest of the zero-shot model (`set=missing=keep-zeroshot`"
        " writes the whole zero-shot model with the merged tower instead)"
    ),
    "one-tower": (
        "the fine-tuned checkpoint holds the {tower} tower only; the rest stays zero-shot"
    ),
    "unknown-layers": (
        "{layers:layer that is not known is/layers that are not known are} named after their"
        " modules: {examples}"
    ),
    "batch-norms": (
        "{statistics} running means and variances of batch norms are interpolated like their"
        " layers' weights, and never masked"
    ),
    "left-behind": (
        "{source}: {tensors:tensor/tensors} that the zero-shot model lacks ({share:.1%} of its"
        " numbers) are left behind, and whatever they learned is lost: {examples}"
    ),
    "mixed-layers": (
        "parameters of {layers:layer/layers} stay zero-shot, because the fine-tuned checkpoint"
        " lacks them; what is measured as fine-tuned is a mixture of both: {examples}"
    ),
    "some-stay-zeroshot": (
        "parameters that some fine-tuned checkpoints lack stay zero-shot: {examples}"
    ),
    "some-left-out": (
        "parameters that {source}, the first fine-tuned checkpoint, lacks are left out: {examples}"
    ),
    "some-copied": (
        "parameters that the zero-shot checkpoint lacks are copied from {source}, the first"
        " fine-tuned checkpoint, not averaged: {examples}"
    ),
    "other-encoder": _other_encoder_text,
    "other-dtype": (
        "the zero-shot and the fine-tuned weights differ in dtype; the output has the fine-tuned"
        " one, {dtype} (`dtype` names another)"
    ),
    # checks of the inputs
    "swapped": lambda **values: _unrelated_text(**values, swapped=True),
    "unrelated": _unrelated_text,
    "equal-models": _equal_models_text,
    "at-chance": _at_chance_text,
    "odd-names": _odd_names_text,
    "zeroshot-at-chance": _zeroshot_at_chance_text,
    "all-recognised": (
        "the fine-tuned model recognises all of {images} images; if it was fine-tuned on them, it"
        " looks better than it is, and every merge worse: give images that it has not seen"
    ),
    "half-zeroshot": (
        "{share:.0%} of the numbers of the merged layers stay zero-shot, because {source} lacks"
        " them: what is measured as fine-tuned is a mixture; give a checkpoint that has all"
    ),
    "blank-images": (
        "{source}: {images} images that were looked at show nothing: all of their pixels are from"
        " {darkest} to {brightest} (0 is black, 255 white); values from 0 to 1 that were saved as"
        " whole numbers look so, and numbers of 12 bits in files of 16; scale them to the full"
        " range"
    ),
    "same-images": "{source}: all of {images} images that were looked at are the same image",
    "pixel-range": (
        "{source}: the floats of {images} images go from {least:.3g} to {most:.3g}, but the model's"
        " own preprocessing makes {low:.3g} to {high:.3g} of black and white; give the images"
        " without normalisation, or with the model's mean and deviation"
    ),
    "swapped-sources": (
        "the fine-tuned model is surely worse than the zero-shot one on the ID images ({id}) and"
        " surely better on the OOD images ({ood}): `id` and `ood` are probably swapped"
    ),
    "limit-in-fractions": lambda limit: (
        f"`max_loss` is in points of accuracy, and {limit:g} points are less than one image in a"
        f" thousand; if you meant {100 * limit:g}%, pass {100 * limit:g}"
    ),
    # gains of a sweep
}
