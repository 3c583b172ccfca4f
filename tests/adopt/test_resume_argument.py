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
def test_words(template: str, words: list[str]) -> None:
    """Words are split before they are filled, so that a path with a space stays one."""
    assert ResumeArgument.parse(template).words(PATH, 500) == words


@pytest.mark.parametrize("template", ["", "{foo}", "--r {path} {}", "'unclosed", "--r {path", "p}"])
def test_refused(template: str) -> None:
    """A template that cannot be filled is refused before anything runs."""
    with pytest.raises(ValueError, match=r"."):
        ResumeArgument.parse(template)


def test_a_path_with_braces_is_taken_as_it_is() -> None:
    """A path that looks like a placeholder is not filled once more."""
    path = Path("/data/{step}/checkpoint-500")
    assert ResumeArgument.parse("{path} {step}").words(path, 500) == [str(path), "500"]


def test_step_of_a_name_without_a_number() -> None:
    """There is no step to tell then, and a count of saves would be a lie."""
    with pytest.raises(ConfigError, match="no number"):
        ResumeArgument.parse("--step {step}").words(PATH, None)
