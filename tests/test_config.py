"""One declaration of each option: what a function takes, shows and checks, and what a command
repeats."""

import inspect
import math
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import torch

import clipmerge
from clipmerge.config import (
    EvaluateOptions,
    MergeOptions,
    PlanOptions,
    PushOptions,
    SweepOptions,
    complete_options,
    declarations,
    with_flags,
)
from clipmerge.errors import UsageError
from clipmerge.planning.recipe import load_recipe
from clipmerge.request import Calibration, command_text
from tests.support.command import clipmerge as command

#: Functions by the options that they take, and the command of the same name.
FUNCTIONS: dict[Callable[..., Any], type] = {
    clipmerge.merge: MergeOptions,
    clipmerge.plan: PlanOptions,
    clipmerge.evaluate: EvaluateOptions,
    clipmerge.sweep: SweepOptions,
    clipmerge.push: PushOptions,
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_option_is_an_argument_a_sentence_and_a_flag_with_one_default(
    function: Callable[..., Any],
) -> None:
    parameters = inspect.signature(function).parameters
    shown = command(function.__name__, "--help").out
    for name, (kind, option) in declarations(FUNCTIONS[function]).items():
        assert parameters[name].default == option.default
        assert parameters[name].annotation == kind
        assert f"    {name}: {option.help.split('; may')[0][:20]}" in str(function.__doc__)
        assert not option.help or option.names(name)[0].partition("/")[0] in shown


def test_defaults_are_added_and_types_are_checked() -> None:
    complete = complete_options(MergeOptions, {"images": "12", "device": "cpu"})
    assert complete["images"] == 12
    assert complete["seed"] == 0
    assert set(complete) == set(get_type_hints(MergeOptions))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("images", 0, "expected at least 1"),
        ("max_loss", math.nan, "expected at least 0"),
        ("seed", "x", "expected a valid integer"),
        ("dtype", "float8", "expected 'keep', 'float32', 'bfloat16' or 'float16'"),
        ("strict", "perhaps", "expected a valid boolean"),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_its_parameter(
    name: str, value: object, reason: str
) -> None:
    with pytest.raises(UsageError, match=f"^`{name}` {value}: {reason}"):
        complete_options(MergeOptions, {name: value})


def test_an_unknown_option_is_a_type_error_as_for_any_function() -> None:
    with pytest.raises(TypeError, match=r"'imags'\. Did you mean 'images'\?"):
        complete_options(MergeOptions, {"imags": 3})


@pytest.mark.parametrize(
    ("parameter", "flag"),
    [
        ("`images_at_once`", "--images-at-once"),
        ("`hash=False`", "--no-hash"),
        ("`overwrite=True`", "--overwrite"),
        ("`points`", "--point"),
        ("`device=cpu`", "--device cpu"),
        ("`output`", "--output"),
        ("`clipmerge push`", "`clipmerge push`"),
    ],
)
def test_a_message_names_the_parameter_and_the_command_line_its_flag(
    parameter: str, flag: str
) -> None:
    assert with_flags(f"{parameter} 3: see {parameter}") == f"{flag} 3: see {flag}"


def test_a_command_is_read_back_as_the_options_it_was_written_from() -> None:
    options = {
        "hash": False,
        "strict": True,
        "set": {"method.alpha": 0.4},
        "template": ["a {}.", "the {}."],
        "images_at_once": 3,
    }
    words = ["merge", "a", "b", "--recipe", "wise-ft"]
    text = command_text("merge", "a", "b", recipe="wise-ft", options=options, output="out")
    assert text.startswith(f"clipmerge {' '.join(words)} ")
    assert text == command_text(
        "merge", "a", "b", options=dict(reversed(options.items())), recipe="wise-ft", output="out"
    )
    assert text.endswith(
        "--template 'a {}.' --template 'the {}.' --images-at-once 3 --set method.alpha=0.4"
        " --strict --no-hash --output out"
    )


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        (load_recipe("wise-ft"), "wise-ft"),
        (load_recipe("wise-ft", {"method.alpha": 0.1}), "'<recipe wise-ft>'"),
        ({"name": "mine", "method": {"name": "wise-ft"}}, "'<recipe mine>'"),
        ({"method": {"name": "wise-ft"}}, "'<recipe custom>'"),
    ],
)
def test_a_recipe_in_memory_is_named_only_if_its_name_gives_it_again(
    recipe: Any, word: str
) -> None:
    assert command_text("merge", "a", "b", recipe=recipe) == f"clipmerge merge a b --recipe {word}"
    swept = command_text("sweep", recipes=[recipe, "lines"])
    assert swept == f"clipmerge sweep --recipe {word} --recipe lines"


def test_one_text_and_a_device_of_torch_are_taken_as_what_they_mean() -> None:
    given = {"set": "method.alpha=0.2", "keep": "a=b", "device": torch.device("cpu")}
    options = complete_options(MergeOptions, given)
    assert (options["set"], options["keep"]) == (["method.alpha=0.2"], ["a=b"])
    assert options["device"] == "cpu"
    assert command_text("merge", "a", "b", options=given).endswith(
        "--keep a=b --device cpu --set method.alpha=0.2"
    )


def test_class_names_in_memory_are_a_list_or_numbered_as_in_id2label() -> None:
    for names in (["cat", "dog"], {1: "dog", 0: "cat"}, {"0": "cat", "1": "dog"}):
        assert Calibration.from_options({"classes": names}).classes == ("cat", "dog")
        text = command_text("merge", "a", "b", options={"classes": names})
        assert text == "clipmerge merge a b --classes '<2 names>'"
    with pytest.raises(UsageError, match="`classes`: its keys are not the numbers 0 to 1"):
        Calibration.from_options({"classes": {"cat": 0, "dog": 1}})
