"""The template of --resume-arg."""

from pathlib import Path

import pytest

from orchestrator.adopt.resume_argument import ResumeArgument
from orchestrator.errors import ConfigError

PATH = Path("/data/my run/checkpoint-500")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("--resume {path}", ["--resume", str(PATH)]),
        ("--resume={path}", [f"--resume={PATH}"]),
        ("train.resume={path} +step={step}", [f"train.resume={PATH}", "+step=500"]),
        ("--resume", ["--resume"]),
        ("'--note=a b' {step}", ["--note=a b", "500"]),
        ('\'{"resume": "{path}"}\'', [f'{{"resume": "{PATH}"}}']),
    ],
)
def test_template_is_split_before_it_is_filled(template: str, words: list[str]) -> None:
    """Words are split first, so that a path with a space stays one word."""
    assert ResumeArgument.parse(template).words(PATH, 500) == words


@pytest.mark.parametrize("template", ["", "{foo}", "--r {path} {}", "'unclosed", "--r {path", "p}"])
def test_template_that_cannot_be_filled_is_refused(template: str) -> None:
    """The template is refused before anything runs."""
    with pytest.raises(ValueError, match=r"."):
        ResumeArgument.parse(template)


def test_path_with_braces_is_not_filled_again() -> None:
    """A path that looks like a placeholder is not filled once more."""
    path = Path("/data/{step}/checkpoint-500")
    assert ResumeArgument.parse("{path} {step}").words(path, 500) == [str(path), "500"]


def test_step_is_refused_for_a_name_without_a_number() -> None:
    """Such a name has no step, and a count of saves would be wrong."""
    with pytest.raises(ConfigError, match="no number"):
        ResumeArgument.parse("--step {step}").words(PATH, None)
