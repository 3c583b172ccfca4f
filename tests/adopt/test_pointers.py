"""The files that name the newest checkpoint, after that checkpoint is gone or torn."""

from pathlib import Path

import pytest
import torch

from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.pointers import repair_pointers
from orchestrator.system.durable import Disk

# The pattern, the two names, the file, and what it says of the second and of the first.
POINTERS = {
    "DeepSpeed": ("global_step*", "global_step5", "global_step10", "latest", "{0}", "{1}"),
    "DeepSpeed tag": ("epoch*", "epoch1", "epoch2", "latest", "{0}\n", "{1}\n"),
    "detectron2": ("model_*.pth", "model_05.pth", "model_10.pth", "last_checkpoint", "{0}", "{1}"),
    "MMEngine": ("e_*.pth", "e_1.pth", "e_2.pth", "last_checkpoint", "{2}/{0}", "{2}/{1}"),
    "Megatron-LM": (
        *("iter_*", "iter_0000005", "iter_0000010", "latest_checkpointed_iteration.txt"),
        *("10", "5"),
    ),
    "verl": (
        *("global_step_*", "global_step_1", "global_step_2", "latest_checkpointed_iteration.txt"),
        *("2\n", "1\n"),
    ),
}


def save(path: Path) -> None:
    file = path if path.suffix else path / "model.pt"
    file.parent.mkdir(exist_ok=True)
    torch.save({"a": torch.zeros(100)}, file)


def repaired(folder: Path, pattern: str, chosen: str) -> list[tuple[str, str]]:
    """Return the file and what it named, for each that was repaired."""
    found = repair_pointers(Pattern.parse(f"{folder}/{pattern}"), folder / chosen, Disk())
    return [(pointer.file.name, pointer.named) for pointer in found]


@pytest.mark.parametrize("state", ["gone", "torn", "whole"])
@pytest.mark.parametrize(
    ("pattern", "older", "newer", "file", "text", "repaired_text"),
    POINTERS.values(),
    ids=POINTERS.keys(),
)
def test_pointer_names_a_whole_checkpoint(
    tmp_path: Path,
    pattern: str,
    older: str,
    newer: str,
    file: str,
    text: str,
    repaired_text: str,
    state: str,
) -> None:
    """It is rewritten only where what it names is gone or torn, and keeps its form."""
    save(tmp_path / older)
    if state != "gone":
        save(tmp_path / newer)
    if state == "torn":
        torn = tmp_path / newer if file == "last_checkpoint" else tmp_path / newer / "model.pt"
        torn.write_bytes(torn.read_bytes()[:100])
    text = text.format(newer, older, tmp_path)
    (tmp_path / file).write_text(text)
    told = repaired(tmp_path, pattern, older)
    if state == "whole":
        assert told == []
        assert (tmp_path / file).read_text() == text
        return
    assert [name for name, _ in told] == [file]
    assert (tmp_path / file).read_text() == repaired_text.format(newer, older, tmp_path)
    assert repaired(tmp_path, pattern, older) == []
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


@pytest.mark.parametrize("file", ["latest", "latest_checkpointed_iteration.txt"])
def test_pointer_that_a_kill_has_left_empty_names_a_checkpoint(tmp_path: Path, file: str) -> None:
    """It was opened and not written yet."""
    save(tmp_path / "global_step5")
    (tmp_path / file).touch()
    assert repaired(tmp_path, "global_step*", "global_step5") == [(file, "")]
    assert (tmp_path / file).read_text() in ("global_step5", "5")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("latest", "something_else"),
        ("latest", "../global_step9"),
        ("latest", "/elsewhere/global_step9"),
        ("latest", "x" * 5000),
        ("last_checkpoint", "\0\xff"),
        ("latest_checkpointed_iteration.txt", "release"),
        ("latest_checkpointed_iteration.txt", "-1"),
    ],
)
def test_file_that_names_something_else_is_left_alone(tmp_path: Path, file: str, text: str) -> None:
    """Only a name that the pattern matches is known to be a checkpoint's."""
    save(tmp_path / "global_step5")
    (tmp_path / file).write_text(text, encoding="latin-1")
    before = (tmp_path / file).read_bytes()
    assert repaired(tmp_path, "global_step*", "global_step5") == []
    assert (tmp_path / file).read_bytes() == before


@pytest.mark.parametrize("kind", ["link", "directory", "dangling"])
def test_pointer_that_is_no_regular_file_is_left_alone(tmp_path: Path, kind: str) -> None:
    """A link is the script's own way, and may lead elsewhere."""
    save(tmp_path / "global_step5")
    (tmp_path / "mine").write_text("global_step9")
    pointer = tmp_path / "latest"
    if kind == "directory":
        pointer.mkdir()
    else:
        pointer.symlink_to("mine" if kind == "link" else "global_step9")
    assert repaired(tmp_path, "global_step*", "global_step5") == []
    assert (tmp_path / "mine").read_text() == "global_step9"


def test_name_without_a_number_does_not_become_one(tmp_path: Path) -> None:
    """A file of numbers cannot name it."""
    save(tmp_path / "iter_last")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    assert repaired(tmp_path, "iter_*", "iter_last") == []
