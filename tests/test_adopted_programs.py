"""The table of other people's programs, and the page that is made from it."""

from pathlib import Path
from typing import Any

import pytest

from examples.adopt.page import page
from examples.adopt.programs import Program, load
from examples.adopt.saves_on_disk import has_begun
from examples.adopt.trial import FAULTS
from examples.adopt.verdict import broken_promises
from orchestrator.adopt.resume_argument import ResumeArgument
from orchestrator.config import Config

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "adopted-programs.md"
PROGRAMS = load()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_options_are_valid(program: Program, tmp_path: Path) -> None:
    """The options of every program are ones that `orchestrator run` accepts."""
    command = program.words(program.command, "python", tmp_path)
    settings = {"adopt": "\n".join(program.adopt)}
    if program.resume_arg:
        settings["resume_arg"] = program.resume_arg
        assert ResumeArgument.parse(program.resume_arg).template
    assert Config.resolve(settings, {}, tmp_path, command).adopt is not None


def test_page_has_the_options_of_every_program() -> None:
    """The page says of every program what its entry says now."""
    made = page(PROGRAMS, {})
    rows = [line for line in made.split("\n## ")[1].splitlines() if line.startswith("| [")]
    assert len(rows) == len(PROGRAMS) >= 18
    text = PAGE.read_text()
    for row in rows:
        assert row in text


def test_program_that_is_missing_says_what_it_needs(tmp_path: Path) -> None:
    """Without its checkout a program is listed as not run, with the reason."""
    program = PROGRAMS[0]
    missing = program.missing("python3", tmp_path)
    assert missing == f"a checkout of {program.source} in {program.checkout}/"
    result = {"name": program.name, "not_run": missing}
    assert f"not run: needs {missing}" in page([program], {program.name: result})


def outcome(**changes: Any) -> dict[str, Any]:
    facts = {"last": 12, "first": 10, "offered": True, "resumed": False}
    facts |= {"status": None, "problem": ""}
    kept = {
        "faults": [{"name": name, **facts} for name in FAULTS],
        "beginning": 1,
        "end": 40,
        "status": 0,
        "torn": [],
        "verified": True,
        "left": 0,
        "messages": [],
        "problem": "",
    }
    return kept | changes


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"status": 70}, "the run ended with 70"),
        ({"torn": ["a.pt"]}, "1 of its files cannot be loaded"),
        ({"left": 2}, "2 processes were left"),
        ({"verified": False}, "a checkpoint is not valid"),
        ({"faults": outcome()["faults"][:3]}, "it had ended before the last 2 of the faults"),
        ({"beginning": 10}, "kill: it began from zero"),
        ({"beginning": 10, "faults": [{**f, "resumed": True} for f in outcome()["faults"]]}, None),
    ],
)
def test_verdict(changes: dict[str, Any], problem: str | None) -> None:
    """Whatever was not as promised is named."""
    found = broken_promises(PROGRAMS[0], outcome(**changes))
    assert found == [] if problem is None else problem in found


@pytest.mark.parametrize(
    ("before", "now", "begun"),
    [
        ({}, {"a": (0, 1)}, True),
        ({"a": (9, 1)}, {"a": (0, 2)}, True),
        ({"a": (9, 1)}, {"a": (9, 1), "a.tmp": (0, 2)}, True),
        ({"a": (5, 1)}, {"a": (9, 2)}, False),
        ({"a": (9, 1)}, {"a": (9, 2)}, False),
        ({"a": (9, 1), "a.tmp": (9, 1)}, {"a": (9, 2)}, False),
    ],
    ids=["new", "shorter", "temporary", "longer", "as long", "renamed"],
)
def test_begin_of_a_save_is_told_from_its_end(
    before: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]], begun: bool
) -> None:
    """A kill at the end of a save would not be one in a save."""
    assert has_begun(before, now) == begun


@pytest.mark.parametrize("messages", [[], ["warning: offered, not read: the script has not"]])
def test_message_that_was_promised_is_required(messages: list[str]) -> None:
    """A program that reads nothing passes only if the supervisor has said so."""
    program = next(program for program in PROGRAMS if program.message)
    found = broken_promises(program, outcome(messages=messages))
    assert found == ([] if messages else [f"no message said: {program.message}"])
