"""Sharded tensors: which piece each rank saves, and that it gets back what it needs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from orchestrator.checkpoint.boxes import Box
from orchestrator.checkpoint.contents import STATE_FILE, file_of_rank
from orchestrator.checkpoint.shards import Layout, ShardedTensor, ShardIndex
from orchestrator.errors import ConfigError, MismatchError
from orchestrator.training.state import shard_reader
from orchestrator.training.state.dtensors import local_of
from orchestrator.training.state.object_restore import ObjectRestore
from orchestrator.training.state.registered_objects import Registry
from orchestrator.training.state.replicas import Replicas, merge_own
from orchestrator.training.state.shard_reader import SHARDS, ShardReader
from orchestrator.training.state.shard_restore import ShardRestore
from tests.training.state.sharded import (
    as_rank,
    cut_model,
    reader_of,
    registry_of,
    save,
    state_of,
    stored_in,
    whole_model,
)

PLANS = ["fsdp", "hsdp", "tp", "both"]
SOURCE = Path("checkpoint")


def restore(registry: Registry, directory: Path, rank: int) -> ShardRestore:
    """Restore the objects of a rank from the files in a directory."""
    files = stored_in(directory)
    file = file_of_rank(rank) if file_of_rank(rank) in files.paths else STATE_FILE
    content = dict(files.load(STATE_FILE))
    if file != STATE_FILE:
        merge_own(content, files.load(file))
    pieces = ShardRestore(reader_of(files), registry.sharding, file)
    content = pieces.apply(content, SOURCE)
    ObjectRestore(registry.objects, SOURCE, registry.sharding).restore(content, borrowed=True)
    return pieces


def registry_without_steps(model: torch.nn.Module) -> Registry:
    """The objects of a script that has begun anew, with other weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            local_of(parameter).fill_(9.0)
    registry = Registry()
    registry.add({"model": model, "optimizer": torch.optim.AdamW(model.parameters())})
    registry.find_shards()
    return registry


def flat(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of the model and of the optimizer by name."""
    found = dict(state["model_state_dict"])
    for number, entry in state["optimizer_state_dict"]["state"].items():
        found |= {f"{number}.{name}": value for name, value in entry.items()}
    return found


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    """Return the tensors of a rank that holds everything."""
    return {name: t.clone() for name, t in flat(state_of(registry_of(whole_model()))).items()}


@pytest.fixture(scope="module", params=PLANS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of four ranks under each plan."""
    directory = tmp_path_factory.mktemp(request.param)
    save(directory, request.param, 4)
    return directory


def test_pieces_of_all_ranks_are_the_whole_tensors(
    saved: Path, whole: dict[str, torch.Tensor]
) -> None:
    """What the files hold, put together by a process without a group, is the unsharded state."""
    reader = reader_of(stored_in(saved))
    assert reader.tensors
    for path, tensor in reader.tensors.items():
        name = path[1] if path[0] == "model_state_dict" else f"{path[2]}.{path[3]}"
        read = reader.read(path, Box.whole(tensor.layout.size))
        assert torch.equal(read, whole[str(name)])


def test_same_ranks_get_their_own_pieces_back(saved: Path) -> None:
    """Each rank reads its own file and state.pt, and ends with the bits that it had saved."""
    for rank in (0, 3):
        with as_rank(rank, 4):
            expected = flat(state_of(registry_of(cut_model(saved.name.rstrip("0123456789"), 4))))
            registry = registry_without_steps(cut_model(saved.name.rstrip("0123456789"), 4))
            assert restore(registry, saved, rank).recut == set()
            restored = flat(state_of(registry))
            assert restored.keys() == expected.keys()
            assert all(torch.equal(restored[name], expected[name]) for name in expected)
            live = registry.objects["optimizer"].state_dict()["state"][0]["exp_avg"]
            assert isinstance(live, DTensor)


@pytest.mark.parametrize(("plan", "size"), [("fsdp", 3), ("both", 4), ("tp", 2)])
def test_other_ranks_get_what_they_hold_of_the_same_tensors(
    saved: Path, whole: dict[str, torch.Tensor], plan: str, size: int
) -> None:
    """Whatever four ranks have cut, other numbers of ranks and other plans go on with, bit by bit.

    What the new ranks hold is what they would hold had they cut the whole tensors themselves.
    """
    for rank in (0, size - 1):
        with as_rank(rank, size):
            expected = flat(state_of(registry_of(cut_model(plan, size))))
            registry = registry_without_steps(cut_model(plan, size))
            restore(registry, saved, rank)
            restored = flat(state_of(registry))
            assert restored.keys() == expected.keys() == whole.keys()
            assert all(torch.equal(restored[name], expected[name]) for name in expected)


def test_one_process_without_a_group_gets_whole_tensors(
    saved: Path, whole: dict[str, torch.Tensor]
) -> None:
    """A script on a laptop resumes what four ranks have saved."""
    registry = registry_without_steps(whole_model())
    assert restore(registry, saved, 0).recut == {"model_state_dict", "optimizer_state_dict"}
    restored = flat(state_of(registry))
    assert all(torch.equal(restored[name], whole[name]) for name in whole)


def test_whole_tensors_of_one_process_are_cut() -> None:
    """A run that began without FSDP goes on with it."""
    content = state_of(registry_of(whole_model()))
    for rank in range(2):
        with as_rank(rank, 2):
            expected = flat(state_of(registry_of(cut_model("fsdp", 2))))
            registry = registry_without_steps(cut_model("fsdp", 2))
            pieces = ShardRestore(None, registry.sharding, STATE_FILE)
            cut = pieces.apply(content, SOURCE)
            assert pieces.recut == {"model_state_dict", "optimizer_state_dict"}
            ObjectRestore(registry.objects, SOURCE, registry.sharding).restore(cut)
            restored = flat(state_of(registry))
            assert all(torch.equal(restored[name], expected[name]) for name in expected)


class RowNorms(torch.optim.Optimizer):
    """Keeps one number for each row of a weight, as factored optimizers do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.dim() > 1:
                rows = DTensor.from_local(
                    parameter.to_local().norm(dim=1),
                    parameter.device_mesh,
                    parameter.placements,
                    shape=parameter.shape[:1],
                    stride=(1,),
                )
                self.state[parameter]["rows"] = rows


def test_optimizer_state_of_another_shape_than_its_parameter_is_cut_as_it_was() -> None:
    """Before its first step an optimizer does not say where such a state belongs."""
    for rank in range(2):
        with as_rank(rank, 2):
            saved = Registry()
            model = cut_model("fsdp", 2)
            optimizer = RowNorms(model.parameters())
            with torch.no_grad():
                optimizer.step()
            saved.add({"model": model, "optimizer": optimizer})
            saved.find_shards()
            state, file = state_of(saved), file_of_rank(rank)
            assert saved.sharding is not None
            index = saved.sharding.index_of(state, file)
            live = Registry()
            live.add({"model": model, "optimizer": RowNorms(model.parameters())})
            live.find_shards()
            content = {file: {"shards": saved.sharding.pieces_of(state)}, STATE_FILE: state}
            pieces = ShardRestore(ShardReader(index, content.__getitem__), live.sharding, file)
            ObjectRestore(live.objects, SOURCE, live.sharding).restore(pieces.apply(state, SOURCE))
            assert pieces.recut == set()
            rows = live.objects["optimizer"].state_dict()["state"][0]["rows"]
            assert isinstance(rows, DTensor)
            assert torch.equal(rows.to_local(), state["optimizer_state_dict"]["state"][0]["rows"])
            assert tuple(rows.shape) == (7,)


def test_whole_file_of_another_rank_is_not_read(tmp_path: Path) -> None:
    """A rank that holds the pieces that it has saved needs no other file: they may be gone."""
    save(tmp_path, "fsdp", 2)
    (tmp_path / "rank-00001.pt").write_bytes(b"")
    with as_rank(0, 2):
        restore(registry_without_steps(cut_model("fsdp", 2)), tmp_path, 0)


def test_tensor_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    """The pieces may be of the same shape where the tensors are not."""
    save(tmp_path, "fsdp", 2)
    with as_rank(0, 2):
        model = cut_model("none", 2)
        model[0] = torch.nn.Linear(5, 8)
        torch.distributed.fsdp.fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        with pytest.raises(
            MismatchError, match=r"0\.weight is \[7, 5\] in the file, \[8, 5\] here"
        ):
            restore(registry_of(model), tmp_path, 0)


def test_state_of_another_shape_is_refused_for_other_ranks() -> None:
    """Only the ranks that have cut it know which part is whose, and a whole one would not fit."""
    with as_rank(0, 2):
        model = cut_model("fsdp", 2)
        saved, optimizer = Registry(), RowNorms(model.parameters())
        with torch.no_grad():
            optimizer.step()
        saved.add({"optimizer": optimizer})
        saved.find_shards()
        assert saved.sharding is not None
        state = state_of(saved)
        index = saved.sharding.index_of(state, STATE_FILE)
    with as_rank(0, 3):
        live = Registry()
        live.add({"optimizer": RowNorms(cut_model("fsdp", 3).parameters())})
        live.find_shards()
        pieces = ShardRestore(ShardReader(index, lambda _: state), live.sharding, STATE_FILE)
        with pytest.raises(MismatchError, match="has not the size of its parameter"):
            pieces.apply(state, SOURCE)


def test_layer_that_is_gone_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    """A model of fully_shard is compared like any other, though it has hooks on loading."""
    save(tmp_path, "fsdp", 2)
    with as_rank(0, 2):
        model = cut_model("none", 2)[:2]
        torch.distributed.fsdp.fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        with pytest.raises(MismatchError, match=r"model: layer 2\.bias is only in the file"):
            restore(registry_without_steps(model), tmp_path, 0)


def test_buffer_in_pieces_is_saved_once() -> None:
    """It is a piece of a tensor, and not what a rank has for itself."""
    with as_rank(1, 2):
        model = cut_model("fsdp", 2)
        mesh = init_device_mesh("cpu", (2,))
        model.register_buffer("table", DTensor.from_local(torch.ones(2), mesh, [Shard(0)]))
        registry = registry_of(model)
        own = Replicas(registry.objects, registry.sharding).own(state_of(registry))
        assert "table" in own["shards"]["model_state_dict"]
        assert "table" not in own["buffers"]["model_state_dict"]
        assert "1.running_mean" in own["buffers"]["model_state_dict"]


@pytest.mark.parametrize(
    ("placement", "problem"),
    [
        (Partial(), "each rank holds a part of its sum"),
        (_StridedShard(0, split_factor=2), "is no box of it"),
    ],
)
def test_what_has_no_place_is_refused_by_name(placement: Any, problem: str) -> None:
    """A part of a sum and a piece that is no box cannot be told from the other ranks'."""
    with as_rank(0, 2):
        mesh = init_device_mesh("cpu", (2,))
        shape = torch.Size((4, 2)) if isinstance(placement, _StridedShard) else None
        odd = DTensor.from_local(
            torch.ones(2, 2), mesh, [placement], shape=shape, stride=shape and (2, 1)
        )
        model = torch.nn.ParameterDict({"odd": torch.nn.Parameter(odd)})
        registry = Registry()
        registry.add({"model": model})
        with pytest.raises(ConfigError, match=rf"model_state_dict\.odd .*: .*{problem}"):
            registry.find_shards()


def test_replicas_of_a_piece_are_compared_with_each_other() -> None:
    """With HSDP two ranks hold the same piece; pieces of full sharding have no other to compare."""

    def digests(plan: str, rank: int, change: float = 0.0) -> dict[str, str]:
        with as_rank(rank, 4):
            registry = registry_of(cut_model(plan, 4))
            local_of(next(iter(registry.objects["model"].parameters()))).add_(change)
            return Replicas(registry.objects, registry.sharding).digests(state_of(registry))

    assert "model.0.weight[0:4, 0:5]" in digests("hsdp", 0)
    assert digests("hsdp", 0) == digests("hsdp", 2)
    assert digests("hsdp", 0).keys() != digests("hsdp", 1).keys()
    changed = digests("hsdp", 2, change=1.0)
    assert [n for n, d in digests("hsdp", 0).items() if changed[n] != d] == [
        "model.0.weight[0:4, 0:5]"
    ]
    assert not any("weight" in name for name in digests("fsdp", 0))
    assert {"optimizer.state.0.step", "optimizer (its numbers)"} <= digests("fsdp", 0).keys()


def test_group_of_one_saves_a_plain_file() -> None:
    """One rank holds all of each tensor, and its file is that of a script without DTensors."""
    with as_rank(0, 1):
        registry = registry_of(cut_model("fsdp", 1))
        sharding = registry.sharding
        assert sharding is not None
        assert not sharding.index_of(registry.capture(), STATE_FILE).tensors
        content = registry.capture()
        assert content.keys() == registry_of(whole_model()).capture().keys()
    assert Registry().sharding is None


def test_unsharded_objects_have_no_sharding() -> None:
    """A script without DTensors pays for nothing."""
    assert registry_of(whole_model()).sharding is None


def test_strided_shard_of_one_chunk_is_like_a_shard() -> None:
    """The text of a placement is torch's, and read back as the same cut."""
    with as_rank(1, 2):
        mesh = init_device_mesh("cpu", (2,))
        local = torch.ones(2, 2)
        tensor = DTensor.from_local(local, mesh, [Shard(1)])
        registry = Registry()
        registry.add({"m": torch.nn.ParameterDict({"w": torch.nn.Parameter(tensor)})})
        registry.find_shards()
        assert registry.sharding is not None
        place = registry.sharding.place_at(("m_state_dict", "w"))
        assert place is not None
        assert (place.layout.placements, place.box) == (("S(1)",), Box((0, 2), (2, 2)))


def test_names_that_share_one_storage_do_not_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's index of many names for one small piece takes no memory for each of them."""
    monkeypatch.setattr(shard_reader, "FREE_BYTES", 0)
    shared, boxes = torch.ones(2, 2), (Box((0, 0), (2, 2)), Box((2, 0), (2, 2)))
    names = [f"w{number}" for number in range(30)]
    contents: dict[str, dict[str, Any]] = {STATE_FILE: dict.fromkeys(names, shared)}
    contents[file_of_rank(1)] = {SHARDS: dict.fromkeys(names, shared)}
    layout = Layout("float32", (4, 2), (2,), (), ("S(0)",))
    pieces = dict(zip(contents, boxes, strict=True))
    index = ShardIndex({(name,): ShardedTensor(layout, pieces) for name in names})
    reader = ShardReader(index, lambda file: contents[file])
    assert torch.equal(reader.read(("w0",), Box.whole((4, 2))), torch.ones(4, 2))
    with pytest.raises(ValueError, match="spread their data over"):
        for name in names:
            reader.read((name,), Box.whole((4, 2)))
