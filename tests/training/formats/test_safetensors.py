"""Safetensors files are what their package writes, and nothing takes their place meanwhile."""

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import safetensors.torch
import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.errors import ConfigError
from orchestrator.system.durable import Disk
from orchestrator.training.formats import export
from orchestrator.training.formats.safetensors import write_safetensors
from tests.checkpoint.support import new_store

NAMES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)


def written(state: Any) -> bytes:
    file = io.BytesIO()
    write_safetensors(state, file, {})
    return file.getvalue()


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_of_the_package(name: str, shape: tuple[int, ...]) -> None:
    """Of every type a number, an empty tensor and a matrix are written as the package does."""
    dtype = getattr(torch, name, None)
    if dtype is None:
        pytest.skip("this torch has no such type")
    state = {"weight": torch.ones(shape).to(dtype)}
    assert written(state) == safetensors.torch.save(state, {"format": "pt"})


def test_tensors_of_several_types_are_read_by_the_package() -> None:
    """Whatever the order of the names is, each tensor is where the header says."""
    state = {
        "a": torch.randn(3).to(torch.bfloat16),
        "b": torch.tensor([True, False, True]),
        "c": torch.randn(2, 5),
        "d": torch.arange(7),
        "e": torch.randn(4, dtype=torch.float64).view(2, 2),
        'größe " \n': torch.ones(1, dtype=torch.int8),
    }
    read = safetensors.torch.load(written(state))
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


@pytest.mark.parametrize("name", [7, "__metadata__", "\ud800"], ids=ascii)
def test_name_that_the_format_cannot_hold_is_refused(name: Any) -> None:
    """A file that no program could read is not written."""
    with pytest.raises(ConfigError, match="^cannot write safetensors"):
        written({name: torch.ones(1)})


class SwappedDisk(Disk):
    """A disk on which another user puts a link in the place of a new file at some moment."""

    def __init__(self, moment: str, shared: Path, precious: Path) -> None:
        self._moment, self._shared, self._precious = moment, shared, precious

    def create(self, path: Path, *, below: Path | None = None) -> BinaryIO:
        file = super().create(path, below=below)
        self._swap("create")
        return file

    def sync(self, file: BinaryIO) -> None:
        super().sync(file)
        self._swap("sync")

    def _swap(self, moment: str) -> None:
        if moment == self._moment:
            (temporary,) = self._shared.glob(".model.safetensors.*")
            temporary.unlink()
            temporary.symlink_to(self._precious)


def _weights(checkpoint: Checkpoint, name: str) -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(2, 2)}


@pytest.mark.parametrize("moment", ["create", "sync"])
def test_link_in_the_place_of_an_export_is_neither_changed_nor_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A member of a group can make no private file of this user readable."""
    precious, target = tmp_path / "precious", tmp_path / "shared" / "model.safetensors"
    precious.write_bytes(b"precious")
    precious.chmod(0o600)
    target.parent.mkdir()
    (checkpoint,) = new_store(tmp_path / "run", [1]).all()
    monkeypatch.setattr(export, "Disk", lambda: SwappedDisk(moment, target.parent, precious))
    monkeypatch.setattr(export, "_state_of", _weights)
    with pytest.raises(OSError, match="another file has taken its place"):
        export.export_safetensors(checkpoint, "model", target, replace=False)
    assert precious.read_bytes() == b"precious"
    assert precious.stat().st_mode & 0o777 == 0o600
    assert os.listdir(target.parent) == []
