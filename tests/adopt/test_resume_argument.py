"""The template of --resume-arg."""

import re
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
    assert ResumeArgument.parse(template).words({"path": PATH}, 500) == words


@pytest.mark.parametrize(
    "template", ["", "{foo!r}", "--r {path} {}", "'unclosed", "--r {path", "p}"]
)
def test_template_that_cannot_be_filled_is_refused(template: str) -> None:
    """The template is refused before anything runs."""
    with pytest.raises(ValueError, match=r"."):
        ResumeArgument.parse(template)


@pytest.mark.parametrize(
    ("template", "members", "problem"),
    [
        ("{foo}", ("path",), "there are {path} and {step}, not {foo}"),
        ("{path1}", ("path",), "there are {path} and {step}, not {path1}"),
        ("{netD} {netH}", ("netG", "netD"), "{netG}, {netD}, {path1} and {path2}, not {netH}"),
        ("{path3}", ("path1", "ema"), "{path}, {step}, {path1}, {ema} and {path2}, not {path3}"),
    ],
)
def test_name_of_no_member_is_refused(
    template: str, members: tuple[str, ...], problem: str
) -> None:
    """The message has the names that there are."""
    with pytest.raises(ConfigError, match=re.escape(problem)):
        ResumeArgument.parse(template).check_names(members)


def test_each_member_of_a_unit_is_filled_in_by_name_or_number() -> None:
    """The first member is also the path."""
    argument = ResumeArgument.parse("--g {netG} --d={netD} {path} {path2} {step}")
    argument.check_names(("netG", "netD"))
    members = {"netG": Path("/a/G_{step}.pth"), "netD": Path("/a/D_5.pth")}
    words = ["--g", "/a/G_{step}.pth", "--d=/a/D_5.pth", "/a/G_{step}.pth", "/a/D_5.pth", "5"]
    assert argument.words(members, 5) == words


def test_path_with_braces_is_not_filled_again() -> None:
    """A path that looks like a placeholder is not filled once more."""
    path = Path("/data/{step}/checkpoint-500")
    assert ResumeArgument.parse("{path} {step}").words({"path": path}, 500) == [str(path), "500"]


def test_step_is_refused_for_a_name_without_a_number() -> None:
    """Such a name has no step, and a count of saves would be wrong."""
    with pytest.raises(ConfigError, match="no number"):
        ResumeArgument.parse("--step {step}").words({"path": PATH}, None)
