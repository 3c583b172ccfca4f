"""What a checkpoint consists of, and where that is, for each kind of contents."""

from pathlib import Path

import pytest

from orchestrator.checkpoint.adopted import Adopted
from orchestrator.checkpoint.contents import AdoptedFiles, Contents, FrameworkFiles, StateFile
from orchestrator.errors import ConfigError

DIRECTORY = Path("/run/checkpoints/step-000000000007")


def adopted(path: str, *, is_directory: bool = False, kept: bool = False) -> AdoptedFiles:
    return AdoptedFiles(DIRECTORY, Adopted(path, is_directory, True, True, kept, {}))


CONTENTS: dict[str, tuple[Contents, str, str, str]] = {
    "state file": (StateFile(DIRECTORY), "", "state.pt", ""),
    "framework's files": (FrameworkFiles(DIRECTORY, "lightning"), "content", "content", ""),
    "script's file": (adopted("/out/a.pt"), "/out", "/out/a.pt", "/out/a.pt"),
    "script's directory": (adopted("/out/a", is_directory=True), "/out/a", "/out/a", "/out/a"),
    "kept file": (adopted("/out/a.pt", kept=True), "content", "/out/a.pt", ""),
    "kept directory": (
        adopted("/out/a", is_directory=True, kept=True),
        "content",
        "/out/a",
        "",
    ),
}


@pytest.mark.parametrize(
    ("contents", "folder", "resume_path", "shown_path"), CONTENTS.values(), ids=CONTENTS.keys()
)
def test_contents_know_their_paths(
    contents: Contents, folder: str, resume_path: str, shown_path: str
) -> None:
    """Files are read below one folder, resumed from one path, and shown to people at another."""
    assert contents.folder == DIRECTORY / folder
    assert contents.resume_path == DIRECTORY / resume_path
    assert contents.shown_path == DIRECTORY / shown_path


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("framework's files", str(DIRECTORY / "content")),
        ("script's file", "/out/a.pt"),
        ("kept file", str(DIRECTORY)),
    ],
)
def test_only_a_session_has_a_state_file(name: str, files: str) -> None:
    """For other contents the error names the path to copy the files from."""
    assert StateFile(DIRECTORY).state_file == DIRECTORY / "state.pt"
    with pytest.raises(ConfigError, match=f"copy its files from {files}, or"):
        _ = CONTENTS[name][0].state_file
