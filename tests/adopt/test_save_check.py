"""What each framework's directory must hold."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from orchestrator.adopt.file_check import IncompleteError
from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.save_check import Completeness, examine

STATE = {"a": torch.zeros(100)}


def found(path: Path, usual: dict[str, int] | None = None) -> Completeness:
    saved = SavedFiles.at(path)
    assert saved is not None
    return examine(saved, usual)


def trainer(path: Path) -> None:
    """The files of a Trainer's directory, with a sharded model."""
    path.mkdir()
    shards = {"a": "model-00001-of-00002.bin", "b": "model-00002-of-00002.bin"}
    (path / "model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    for name in (*shards.values(), "optimizer.pt", "rng_state.pth", "training_args.bin"):
        torch.save(STATE, path / name)
    (path / "trainer_state.json").write_text('{"global_step": 5}')


def accelerate(path: Path) -> None:
    path.mkdir()
    for name in ("optimizer.bin", "random_states_0.pkl", "model.bin"):
        torch.save(STATE, path / name)


def distributed(path: Path) -> None:
    dcp.save({"model": STATE}, checkpoint_id=path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "missing", "problem"),
    [
        (trainer, "trainer_state.json", "trainer_state.json, which the Trainer writes last"),
        (trainer, "model-00002-of-00002.bin", "which model.bin.index.json names"),
        (accelerate, "random_states_0.pkl", "random states, which Accelerate writes last"),
        (distributed, ".metadata", ".metadata, which is written last"),
        (distributed, "__0_0.distcp", None),
    ],
)
def test_missing_file_is_named(
    tmp_path: Path, make: Callable[[Path], None], missing: str, problem: str | None
) -> None:
    """A directory that lacks its last file, or one that it names, is no checkpoint."""
    make(tmp_path / "c")
    (tmp_path / "c" / missing).unlink()
    if problem is None:
        assert not found(tmp_path / "c").proven
        return
    with pytest.raises(IncompleteError, match=problem):
        found(tmp_path / "c")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_directory_is_proven_whole(tmp_path: Path) -> None:
    """The file that is written last proves it, or having all that an earlier one has."""
    for make in (trainer, accelerate, distributed):
        make(tmp_path / make.__name__)
    assert found(tmp_path / "trainer").proven
    assert found(tmp_path / "distributed").proven
    assert not found(tmp_path / "accelerate").proven
    usual = {"model.bin": 1, "optimizer.bin": 1, "random_states_3.pkl": 1}
    assert found(tmp_path / "accelerate", usual).proven
    ranks = found(tmp_path / "accelerate", usual | {"random_states_1.pkl": 1})
    assert (ranks.proven, ranks.doubt) == (
        False,
        "it lacks random_states_#.pkl, which an earlier one has",
    )


def test_file_of_an_unknown_format_must_have_its_usual_size(tmp_path: Path) -> None:
    """Its name is there from the start, so it must be as long as in an earlier checkpoint."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "weights-2.npy").write_bytes(b"x" * 50)
    assert found(tmp_path / "c", {"weights-1.npy": 50}).proven
    half = found(tmp_path / "c", {"weights-1.npy": 100})
    assert (half.proven, half.doubt) == (
        False,
        "the format of weights-2.npy does not show whether it is complete",
    )
    # What the Trainer writes last proves what came before, a README that grows too.
    trainer(tmp_path / "t")
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "t").iterdir()}
    (tmp_path / "t" / "README.md").write_text("longer than it was")
    assert found(tmp_path / "t", sizes | {"README.md": 1}).proven


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_short_piece_of_a_distributed_checkpoint_is_refused(tmp_path: Path) -> None:
    """A distributed checkpoint's file must be as long as .metadata says."""
    distributed(tmp_path / "c")
    with open(tmp_path / "c" / "__0_0.distcp", "r+b") as file:
        file.truncate(10)
    with pytest.raises(IncompleteError, match="has 10 bytes, not"):
        found(tmp_path / "c")


def test_links_inside_a_directory_do_not_count(tmp_path: Path) -> None:
    """A link to a file elsewhere is neither sealed nor moved."""
    accelerate(tmp_path / "c")
    (tmp_path / "c" / "latest").symlink_to("model.bin")
    saved = SavedFiles.at(tmp_path / "c")
    assert saved is not None
    assert "latest" not in saved.states


def test_empty_save_never_counts(tmp_path: Path) -> None:
    """A file of any name, or a directory of such files, is one whose writing has just begun."""
    for name in ("model.pth.tar", "a.zip", "weights", "params.msgpack", "noext-5"):
        (tmp_path / name).touch()
        with pytest.raises(IncompleteError, match="is empty"):
            found(tmp_path / name)
    for name in ("c-1/a.npy", "c-2/DONE", "c-3/model.pth.tar"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
        with pytest.raises(IncompleteError, match="is empty"):
            found(tmp_path / Path(name).parent)


@pytest.mark.parametrize("model", ["model.safetensors", "pytorch_model.bin", "unet/a.safetensors"])
def test_first_directory_of_accelerate_is_proven_by_its_own_files(
    tmp_path: Path, model: str
) -> None:
    """Model, optimizer and random states that have been at rest are all that it writes."""
    path = tmp_path / "c"
    accelerate(path)
    (path / model).parent.mkdir(exist_ok=True)
    if model.endswith("safetensors"):
        safetensors.torch.save_file(STATE, path / model)
    else:
        torch.save(STATE, path / model)
    assert not found(path).proven
    for file in [file for file in path.rglob("*") if file.is_file()]:
        os.utime(file, (time.time() - 5, time.time() - 5))
    assert found(path).proven
    (path / "optimizer.bin").write_bytes((path / "optimizer.bin").read_bytes()[:-100])
    with pytest.raises(IncompleteError):
        found(path)
