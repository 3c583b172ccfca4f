"""Which files the processes below this one have open for writing."""

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.open_files import open_for_writing

OPEN = "import sys; f = open(sys.argv[1], sys.argv[2]); print(flush=True); sys.stdin.read()"


@pytest.mark.skipif(not is_available(Capability.PROC), reason="needs /proc")
@pytest.mark.parametrize(
    ("mode", "counts"), [("wb", True), ("r+b", True), ("ab", True), ("rb", False)]
)
def test_file_counts_while_a_child_has_it_open_for_writing(
    tmp_path: Path, mode: str, counts: bool
) -> None:
    """The file and the directory above it count, read or closed files and others do not."""
    file, other = tmp_path / "c-1" / "a.pt", tmp_path / "b.pt"
    file.parent.mkdir()
    file.touch()
    other.touch()
    command = [sys.executable, "-c", OPEN, str(file), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        expected = {file.parent} if counts else set()
        assert open_for_writing([file.parent, other]) == expected
        assert open_for_writing([file]) == ({file} if counts else set())
        child.communicate()
    assert open_for_writing([file, file.parent]) == set()
