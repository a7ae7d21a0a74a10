"""The beginning of a JSON result, and errors that nobody expected."""

import pytest

from clipmerge.cli._terminal import report_error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory (a smaller --batch-size needs less): MemoryError"),
        (RuntimeError("CUDA out of memory."), "out of memory (a smaller --batch-size needs less)"),
        (RuntimeError("no memory map"), "clipmerge failed unexpectedly (RuntimeError)"),
        (FileNotFoundError(2, "Gone", "a"), "a: Gone"),
    ],
)
def test_what_nobody_expected_is_one_line(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_error(error) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {said}")
    assert shown.count("\n") == 1
