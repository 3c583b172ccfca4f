"""Directories to which each rank writes files of its own: small ones, in the known layouts."""

import argparse
import dataclasses
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from orchestrator.adopt.file_check import IncompleteError
from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.save_check import Completeness, examine

STATE = {"weight": torch.zeros(10)}
Make = Callable[..., None]


def found(path: Path, usual: dict[str, int] | None = None) -> Completeness:
    saved = SavedFiles.at(path)
    assert saved is not None
    return examine(saved, usual)


def sizes(path: Path) -> dict[str, int]:
    saved = SavedFiles.at(path)
    assert saved is not None
    return saved.sizes


def save(content: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)


def deepspeed(path: Path, data: int = 3, model: int = 2, stage: int = 2, kind: str = "") -> None:
    """What DeepSpeed writes for each rank, with as many keys as tell how many there are."""
    optimizer = STATE if stage == 0 else None
    state = {"module": STATE, "optimizer": optimizer, "dp_world_size": data, "mp_world_size": model}
    for model_rank in range(model):
        last = f"mp_rank_{model_rank:02d}"
        for data_rank in range(data if stage == 3 else 1):
            first = f"zero_pp_rank_{data_rank}_" if stage == 3 else ""
            save(state, path / f"{first}{last}_model_states.pt")
        for data_rank in range(data if stage else 0):
            name = f"{kind}zero_pp_rank_{data_rank}_{last}_optim_states.pt"
            save({"optimizer_state_dict": STATE, "ds_version": "0.16"}, path / name)


def megatron(path: Path, tensor: int = 2, pipeline: int = 1, expert: int = 1) -> None:
    arguments = argparse.Namespace(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        expert_model_parallel_size=expert,
        lr=0.1,
    )
    for t in range(tensor):
        for p in range(pipeline):
            for e in range(expert):
                rank = f"mp_rank_{t:02d}" + (f"_{p:03d}" if pipeline > 1 else "")
                folder = path / (rank + (f"_{e:03d}" if expert > 1 else ""))
                save({"args": arguments, "iteration": 5, "model": STATE}, folder / MEGATRON)
                save({"optimizer": STATE}, folder / "distrib_optim.pt")


MEGATRON = "model_optim_rng.pt"


def distributed(path: Path, ranks: int = 1) -> None:
    dcp.save({"model": STATE}, checkpoint_id=path)
    if ranks == 1:
        return
    metadata = pickle.loads((path / ".metadata").read_bytes())
    for rank in range(1, ranks):
        shutil.copy(path / "__0_0.distcp", path / f"__{rank}_0.distcp")
        for index, part in [*metadata.storage_data.items()]:
            part = dataclasses.replace(part, relative_path=f"__{rank}_0.distcp")
            metadata.storage_data[dataclasses.replace(index, fqn=f"of_{rank}")] = part
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def fsdp_of_accelerate(path: Path) -> None:
    distributed(path / "pytorch_model_fsdp_0", ranks=2)
    distributed(path / "optimizer_0", ranks=2)
    for rank in range(2):
        save({"python": rank}, path / f"random_states_{rank}.pkl")


def deepspeed_of_accelerate(path: Path) -> None:
    deepspeed(path / "pytorch_model", data=2, model=1)
    (path / "latest").write_text("pytorch_model")
    for rank in range(2):
        save({"python": rank}, path / f"random_states_{rank}.pkl")
    save({}, path / "scheduler.bin")


def deepspeed_of_trainer(path: Path) -> None:
    deepspeed(path / "global_step5", data=2, model=1, stage=3, kind="bf16_")
    (path / "latest").write_text("global_step5")
    for rank in range(2):
        save({"python": rank}, path / f"rng_state_{rank}.pth")
    save({}, path / "training_args.bin")
    (path / "trainer_state.json").write_text('{"global_step": 5}')


def megatron_core(path: Path) -> None:
    distributed(path)
    save({"args": 1}, path / "common.pt")
    (path / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))


def verl(path: Path) -> None:
    for kind in ("model", "optim", "extra_state"):
        for rank in range(2):
            save(STATE, path / "actor" / f"{kind}_world_size_2_rank_{rank}.pt")
    (path / "actor" / "fsdp_config.json").write_text("{}")


LAYOUTS: dict[str, tuple[Make, dict[str, Any], str]] = {
    "zero 1 and 2": (deepspeed, {}, "zero_pp_rank_2_mp_rank_01_optim_states.pt"),
    "zero 2, model": (deepspeed, {}, "mp_rank_01_model_states.pt"),
    "zero 2, bf16": (
        deepspeed,
        {"kind": "bf16_"},
        "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
    ),
    "zero 3": (deepspeed, {"stage": 3}, "zero_pp_rank_1_mp_rank_00_model_states.pt"),
    "no zero": (deepspeed, {"stage": 0}, "mp_rank_01_model_states.pt"),
    "tensor parallel": (megatron, {}, f"mp_rank_01/{MEGATRON}"),
    "pipeline": (megatron, {"pipeline": 2}, "mp_rank_01_001/distrib_optim.pt"),
    "experts": (megatron, {"expert": 2}, f"mp_rank_00_001/{MEGATRON}"),
}
CONTAINERS: dict[str, tuple[Make, str]] = {
    "accelerate, FSDP": (fsdp_of_accelerate, "random_states_1.pkl"),
    "accelerate, FSDP optimizer": (fsdp_of_accelerate, "optimizer_0/.metadata"),
    "accelerate, DeepSpeed": (deepspeed_of_accelerate, "random_states_1.pkl"),
    "accelerate, DeepSpeed part": (
        deepspeed_of_accelerate,
        "pytorch_model/zero_pp_rank_1_mp_rank_00_optim_states.pt",
    ),
    "Trainer, DeepSpeed": (deepspeed_of_trainer, "rng_state_1.pth"),
    "Trainer, DeepSpeed part": (
        deepspeed_of_trainer,
        "global_step5/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
    ),
}


@pytest.mark.parametrize(("make", "options", "missing"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_directory_is_whole_with_the_files_of_all_ranks(
    tmp_path: Path, make: Make, options: dict[str, Any], missing: str
) -> None:
    """The first such directory of a run is proven by what its own files say, and at once."""
    make(tmp_path / "c", **options)
    assert found(tmp_path / "c").proven
    (tmp_path / "c" / missing).unlink()
    with pytest.raises(IncompleteError, match=rf"it lacks {missing} of \d ranks"):
        found(tmp_path / "c")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("make", "missing"), CONTAINERS.values(), ids=CONTAINERS.keys())
def test_directory_with_folders_of_ranks_is_whole_with_all(
    tmp_path: Path, make: Make, missing: str
) -> None:
    """Frameworks put DeepSpeed's and FSDP's files into their own directories."""
    make(tmp_path / "c")
    for file in [file for file in (tmp_path / "c").rglob("*") if file.is_file()]:
        os.utime(file, (time.time() - 5, time.time() - 5))
    assert found(tmp_path / "c").proven
    (tmp_path / "c" / missing).unlink()
    with pytest.raises(IncompleteError, match=f"it lacks {missing}"):
        found(tmp_path / "c")


def test_older_optimizer_of_megatron_has_folders_of_its_own(tmp_path: Path) -> None:
    """They are judged like other files: by an earlier checkpoint."""
    megatron(tmp_path / "c", pipeline=2)
    for folder in [*(tmp_path / "c").iterdir()]:
        (folder / "distrib_optim.pt").unlink()
        save(STATE, folder.with_name(f"{folder.name}_000") / "optim.pt")
    assert not found(tmp_path / "c").proven
    assert found(tmp_path / "c", sizes(tmp_path / "c")).proven


@pytest.mark.parametrize("content", ["step-3.pt", "", "missing", "x" * 5000])
def test_file_called_latest_that_is_not_deepspeeds_is_a_file_like_others(
    tmp_path: Path, content: str
) -> None:
    """A script may mean anything by it."""
    save(STATE, tmp_path / "c" / "model.pt")
    (tmp_path / "c" / "latest").write_text(content)
    assert not found(tmp_path / "c").proven
    assert found(tmp_path / "c", sizes(tmp_path / "c")).proven


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_distributed_checkpoint_of_megatron_is_whole_with_its_last_file(tmp_path: Path) -> None:
    """metadata.json comes after .metadata and common.pt."""
    megatron_core(tmp_path / "c")
    assert found(tmp_path / "c").proven
    (tmp_path / "c" / "metadata.json").unlink()
    assert not found(tmp_path / "c").proven


@pytest.mark.parametrize("kind", ["model", "optim", "extra_state"])
def test_number_of_ranks_in_a_name_is_required(tmp_path: Path, kind: str) -> None:
    """No file of such a layout is known to be the last: the first directory is not proven."""
    verl(tmp_path / "c")
    assert not found(tmp_path / "c").proven
    assert found(tmp_path / "c", sizes(tmp_path / "c")).proven
    (tmp_path / "c" / "actor" / f"{kind}_world_size_2_rank_0.pt").unlink()
    with pytest.raises(IncompleteError, match=f"{kind}_world_size_2_rank_0.pt of 2 ranks"):
        found(tmp_path / "c")


@pytest.mark.parametrize(
    ("make", "before", "after"),
    [
        (deepspeed, {"data": 4, "model": 1}, {"data": 2, "model": 1}),
        (deepspeed, {"data": 2, "model": 2, "stage": 3}, {"data": 3, "model": 1, "stage": 3}),
        (megatron, {"tensor": 4}, {"tensor": 2}),
        (megatron, {"tensor": 2, "pipeline": 2}, {"tensor": 2}),
    ],
)
def test_run_that_goes_on_with_other_ranks_needs_their_files(
    tmp_path: Path, make: Make, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """After a resume on fewer devices an earlier checkpoint does not ask for the old ranks."""
    make(tmp_path / "c-1", **before)
    make(tmp_path / "c-2", **after)
    assert found(tmp_path / "c-2", sizes(tmp_path / "c-1")).proven


def test_other_files_of_an_earlier_checkpoint_are_still_required(tmp_path: Path) -> None:
    """What a script adds to the layout of a framework must be there too."""
    deepspeed(tmp_path / "c-1")
    usual = sizes(tmp_path / "c-1") | {"client_state.pt": 100}
    incomplete = found(tmp_path / "c-1", usual)
    assert (incomplete.proven, incomplete.doubt) == (
        False,
        "it lacks client_state.pt, which an earlier one has",
    )
    save(STATE, tmp_path / "c-1" / "client_state.pt")
    assert not found(tmp_path / "c-1").proven
    assert found(tmp_path / "c-1", usual).proven


@pytest.mark.parametrize("content", [{"module": STATE}, [1], {"dp_world_size": "2"}])
def test_files_that_tell_no_number_of_ranks_prove_nothing(tmp_path: Path, content: Any) -> None:
    """They are judged like any other directory."""
    save(content, tmp_path / "c" / "mp_rank_00_model_states.pt")
    save({"args": content}, tmp_path / "d" / "mp_rank_00" / MEGATRON)
    for name in ("c", "d"):
        assert not found(tmp_path / name).proven
        assert found(tmp_path / name, sizes(tmp_path / name)).proven


def test_model_without_its_optimizer_is_not_proven(tmp_path: Path) -> None:
    """ZeRO writes it next, and nothing tells yet how many files that will be."""
    deepspeed(tmp_path / "c")
    for file in (tmp_path / "c").glob("*_optim_states.pt"):
        file.unlink()
    assert not found(tmp_path / "c").proven
    deepspeed(tmp_path / "d")
    for file in (tmp_path / "d").glob("*_model_states.pt"):
        file.unlink()
    with pytest.raises(IncompleteError, match="mp_rank_00_model_states.pt"):
        found(tmp_path / "d")


def test_enormous_number_of_ranks_takes_no_time(tmp_path: Path) -> None:
    """A damaged or hostile count ends at the first file that is not there."""
    state = {"optimizer": None, "dp_world_size": 10**15, "mp_world_size": 10**15}
    save(state, tmp_path / "c" / "mp_rank_00_model_states.pt")
    save({}, tmp_path / "d" / f"model_world_size_{10**30}_rank_0.pt")
    for name in ("c", "d"):
        with pytest.raises(IncompleteError, match="it lacks"):
            found(tmp_path / name)
