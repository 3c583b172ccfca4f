"""Whether a file is whole, from files that torch and safetensors have written."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from orchestrator.adopt.file_check import (
    IncompleteError,
    dcp_sizes,
    read_json,
    shows_whole,
    torch_root,
)

STATE = {"model": {"a": torch.arange(5000.0), "b": torch.zeros(3)}, "step": 3}


def is_whole(path: Path) -> bool:
    return shows_whole(path, path.stat().st_size)


def listed_as_whole(path: Path) -> bool:
    return shows_whole(path, 100)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_file_that_was_cut_is_incomplete(tmp_path: Path, suffix: str) -> None:
    """A file that was cut anywhere is incomplete, and so is an empty one."""
    file, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    if suffix == ".pt":
        torch.save(STATE, file)
    else:
        safetensors.torch.save_file(STATE["model"], file)  # type: ignore[arg-type]
    assert is_whole(file)
    content = file.read_bytes()
    for size in (0, 1, 4, 7, 8, 9, 100, len(content) // 2, len(content) - 20, len(content) - 1):
        cut.write_bytes(content[:size])
        try:
            assert not is_whole(cut), size
        except IncompleteError as error:
            assert "cut" in str(error)


def test_archive_that_torch_closed_early_is_incomplete(tmp_path: Path) -> None:
    """A save that failed on a full disk may leave a zip with an end, but not all storages."""
    whole, early = tmp_path / "whole.pt", tmp_path / "early.pt"
    torch.save(STATE, whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(early, "w") as copy:
        for name in archive.namelist():
            if not name.endswith("data/1"):
                copy.writestr(name, archive.read(name))
    with pytest.raises(IncompleteError, match="lacks whole/data/1"):
        is_whole(early)


def test_archive_of_archives_that_was_cut_is_incomplete(tmp_path: Path) -> None:
    """Wherever it is cut, also behind a member that is a whole archive, as in a save of SB3."""
    state = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, state)
    file = tmp_path / "model.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", "{}")
        with archive.open("policy.pth", "w", force_zip64=True) as member:
            member.write(state.getvalue())
        archive.writestr("version", "2.4")
    whole = file.read_bytes()
    assert shows_whole(file, len(whole))
    inner_end = whole.index(state.getvalue()) + len(state.getvalue())
    for size in (*range(4, len(whole), 61), *range(inner_end - 2, len(whole))):
        file.write_bytes(whole[:size])
        with pytest.raises(IncompleteError):
            shows_whole(file, size)


def test_pickle_is_not_run(tmp_path: Path) -> None:
    """A file that would run a command when it is loaded runs none when it is examined."""

    class Evil:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "made"),)

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps({"a": Evil()}))
    assert is_whole(tmp_path / "evil.pt")
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(IncompleteError):
        dcp_sizes(tmp_path / ".metadata")
    assert not (tmp_path / "made").exists()


def test_pickle_is_proven_by_its_end_and_json_by_parsing(tmp_path: Path) -> None:
    """Half a JSON file is incomplete; a pickle is proven by its end, unless more comes after it."""
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    assert is_whole(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(IncompleteError):
        is_whole(tmp_path / "a.json")
    whole = pickle.dumps({"a": bytes(1000), "b": [1.0, 2.0]})
    (tmp_path / "a.pkl").write_bytes(whole)
    assert is_whole(tmp_path / "a.pkl")
    for content in (whole[:-1], whole[:500], whole + b"raw bytes, as of joblib", b"\x1f\x8bgzip"):
        (tmp_path / "a.pkl").write_bytes(content)
        assert not is_whole(tmp_path / "a.pkl")
    torch.save(STATE, old := io.BytesIO(), _use_new_zipfile_serialization=False)
    (tmp_path / "old.pth").write_bytes(old.getvalue())
    assert not is_whole(tmp_path / "old.pth")


def test_arrays_of_a_pickle_are_not_read_into_memory(tmp_path: Path) -> None:
    """The supervisor stays small beside arrays of any size, whole and cut ones."""
    size = 1 << 40
    with (tmp_path / "a.pkl").open("wb") as file:
        file.write(b"\x80\x04\x8e" + struct.pack("<Q", size))  # BINBYTES8
        file.truncate(file.tell() + size)
        assert not is_whole(tmp_path / "a.pkl")
        file.seek(0, os.SEEK_END)
        file.write(pickle.STOP)
        file.flush()
        assert is_whole(tmp_path / "a.pkl")
        file.truncate(size)
        assert not is_whole(tmp_path / "a.pkl")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dcp_metadata_has_the_least_sizes(tmp_path: Path) -> None:
    """.metadata names each file of a distributed checkpoint, and its least size."""
    dcp.save({"model": STATE["model"]}, checkpoint_id=tmp_path)
    (data,) = tmp_path.glob("*.distcp")
    assert dcp_sizes(tmp_path / ".metadata") == {data.name: data.stat().st_size}
    content = (tmp_path / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(content[: len(content) // 2])
    with pytest.raises(IncompleteError, match="is incomplete"):
        dcp_sizes(tmp_path / ".metadata")


@pytest.mark.parametrize(
    "read", [listed_as_whole, read_json, torch_root, dcp_sizes], ids=lambda read: read.__name__
)
@pytest.mark.parametrize("suffix", [".pt", ".json", ".safetensors"])
def test_fifo_in_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, read: Callable[[Path], object], suffix: str
) -> None:
    """What was a file when it was listed may be a FIFO that nobody writes to, or a device."""
    fifo, device = tmp_path / f"fifo{suffix}", tmp_path / f"device{suffix}"
    os.mkfifo(fifo)
    device.symlink_to("/dev/zero")
    for path in (fifo, device):
        with pytest.raises(OSError, match="not a regular file"):
            read(path)


def test_link_to_a_file_is_followed(tmp_path: Path) -> None:
    """Scripts name their newest file by a link, which is as whole as the file."""
    torch.save(STATE, tmp_path / "a.pt")
    (tmp_path / "last.pt").symlink_to("a.pt")
    assert is_whole(tmp_path / "last.pt")
