"""Options: their keywords and flags, and the values that are refused."""

import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from clipmerge import UsageError
from clipmerge.options import (
    HELP_GROUPS,
    MergeOptions,
    SweepOptions,
    with_flags,
)
from tests.support.command import done


def test_flags_are_listed_by_group() -> None:
    shown = done("merge", "--help").out
    assert re.findall(r"^(\w+):$", shown, re.M) == list(HELP_GROUPS)
    assert max(map(len, shown.splitlines())) <= 80
    for noise in ("<str>", "list[", "[default: True]", " / "):
        assert noise not in shown


def test_options_are_brought_into_one_form() -> None:
    given = {
        "data": "val",
        "images": "12",
        "alpha": 1,
        "template": "a {}.",
        "ood": ["near=a/b", "c/far"],
        "allow": "swapped",
        "fail_on": "use, either",
        "classes": ["cat", "dog"],
        "max_shard_size": "2KB",
    }
    made = MergeOptions.of(given)
    assert (made.images, made.alpha, made.template) == (12, 1.0, ("a {}.",))
    assert made.ood == {"near": "a/b", "far": "c/far"}
    assert (made.allow, made.fail_on) == (("swapped",), ("use", "either"))
    assert (made.classes, made.max_shard_size) == (("cat", "dog"), 2000)
    assert SweepOptions.of({"recipes": "auto"}).recipes == ("auto",)
    for alphas in (np.linspace(0, 1, 3), [0, 0.5, 1], "0, 0.5,1"):
        assert SweepOptions.of({"alphas": alphas}).alphas == (0.0, 0.5, 1.0)
    assert MergeOptions.of({"classes": np.array(["a", "b"])}).classes == ("a", "b")
    defaults = MergeOptions.of({"ood": None, "classes": None})
    assert all(getattr(defaults, field.name) in (field.default, {}) for field in fields(defaults))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "not a number": ({"max_loss": float("nan")}, "should be a finite number"),
    "too much": ({"max_loss": 101}, "should be less than or equal to 100"),
    "classes without order": ({"classes": {"cat", "dog"}}, "a set has no order"),
    "a number in place of words": ({"fail_on": 3}, "`fail_on` 3: no such word"),
    "a number in place of sources": ({"ood": 3}, "sources are named"),
    "not a size": ({"max_shard_size": float("inf")}, "expected a size with its unit"),
    "no unit": ({"max_shard_size": "5"}, "expected a size with its unit"),
    "no source": ({"ood": ["a="]}, "names no images"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_wrong_value_is_refused(what: str) -> None:
    options, said = REFUSED[what]
    with pytest.raises(UsageError, match=said):
        MergeOptions.of(options)


@pytest.mark.parametrize(
    ("parameter", "flag"),
    [
        ("`max_loss`", "--max-loss"),
        ("`verdict=False`", "--no-verdict"),
        ("`points`", "--point"),
        ("`device=cpu`", "--device cpu"),
        ("`anything`", "`anything`"),
    ],
)
def test_a_message_names_the_keyword_and_the_command_line_its_flag(
    parameter: str, flag: str
) -> None:
    assert with_flags(f"{parameter} 3: see {parameter}") == f"{flag} 3: see {flag}"
