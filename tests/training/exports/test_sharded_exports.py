"""`checkpoints export` of a checkpoint whose tensors are in the files of several ranks."""

import json
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from orchestrator.checkpoint.contents import STATE_FILE
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.publication import publish_state
from orchestrator.checkpoint.shards import SHARDS_FILE
from orchestrator.checkpoint.store import Store
from orchestrator.cli.parser import parse
from orchestrator.errors import OrchestratorError
from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import Disk
from orchestrator.training.exports import dcp as dcp_form
from orchestrator.training.state.shard_reader import ShardReader
from tests.checkpoint.support import manifest_of
from tests.training.state.sharded import registry_of, save, state_of, whole_model

RANKS = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with what four ranks of tensor parallel and FSDP have saved."""
    directory = tmp_path_factory.mktemp("both")
    save(directory, "both", RANKS)
    return directory


@pytest.fixture
def run(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of a run with a checkpoint of these files."""
    monkeypatch.chdir(tmp_path)
    publish(files, tmp_path / "run")
    return tmp_path


def publish(files: Path, run_dir: Path, changed: dict[str, bytes] | None = None) -> None:
    contents = {path.name: path.read_bytes() for path in files.iterdir()} | (changed or {})

    def writer(name: str) -> Any:
        def write(file: DigestingWriter) -> None:
            file.write(contents[name])

        return write

    run = RunDir(run_dir)
    run.create()
    store = Store.open(run, [])
    manifest = manifest_of(7, run_id=store.run_id, world_size=RANKS)
    parts = {name: writer(name) for name in contents if name != STATE_FILE}
    publish_state(store, manifest, writer(STATE_FILE), parts=parts)


def command(*words: str | Path) -> None:
    arguments = parse(["checkpoints", *map(str, words)])
    arguments.run_command(arguments)


def assert_same(value: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected)
    elif isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key in expected:
            assert_same(value[key], expected[key])
    else:
        assert value == expected


@pytest.fixture
def expected() -> dict[str, Any]:
    """Return the states of one rank that holds everything."""
    state = state_of(registry_of(whole_model()))
    return {key: state[key] for key in ("model_state_dict", "optimizer_state_dict")}


def test_torch_files_have_whole_tensors(run: Path, expected: dict[str, Any]) -> None:
    """A script without any group loads the classic file and the bare state_dict."""
    command("export", "run", "--as", "classic")
    classic = torch.load("checkpoint.pt", weights_only=True)
    for key, state in expected.items():
        assert_same(dict(classic[key]), dict(state))
    assert (classic["epoch"], classic["step"]) == (1, 7)
    assert classic.keys().isdisjoint({"rng", "data", "state"})
    command("export", "run", "--as", "state-dict")
    assert_same(dict(torch.load("model.pt")), dict(expected["model_state_dict"]))


def test_safetensors_have_whole_tensors(run: Path, expected: dict[str, Any]) -> None:
    """The package that defines the format reads the file."""
    command("export", "run", "-o", "weights.safetensors")
    loaded = safetensors.torch.load_file("weights.safetensors")
    assert_same(loaded, dict(expected["model_state_dict"]))
    with safetensors.safe_open("weights.safetensors", framework="pt") as file:
        assert file.metadata()["step"] == "7"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_stock_torch_loads_the_form_of_dcp(run: Path, expected: dict[str, Any]) -> None:
    """The directory is one that torch.distributed.checkpoint has written itself."""
    command("export", "run", "--as", "dcp")
    model, state = expected["model_state_dict"], expected["optimizer_state_dict"]["state"]
    wanted = {
        "model_state_dict": {k: torch.zeros_like(v) for k, v in model.items()},
        "optimizer_state_dict": {
            "state": {i: {k: torch.zeros_like(v) for k, v in e.items()} for i, e in state.items()}
        },
    }
    dcp.load(wanted, checkpoint_id="checkpoint", no_dist=True)
    assert_same(wanted["model_state_dict"], dict(model))
    assert_same(wanted["optimizer_state_dict"]["state"], state)


class SwappedDisk(Disk):
    """A disk on which another user puts a link in the place of the new directory at some moment."""

    def __init__(self, moment: str, precious: Path) -> None:
        self._moment, self._precious = moment, precious

    def make_directory(self, path: Path, *, below: Path | None = None) -> None:
        super().make_directory(path, below=below)
        self._swap("make", path)

    def sync_directory(self, path: Path) -> None:
        self._swap("sync", path)
        super().sync_directory(path)

    def _swap(self, moment: str, path: Path) -> None:
        if moment == self._moment:
            path.rename(path.with_name("aside"))
            path.symlink_to(self._precious)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("moment", ["make", "sync"])
def test_link_in_the_place_of_the_new_directory_leads_to_no_file(
    run: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A member of a group who may write beside the export cannot have it overwrite other files."""
    precious = run / "precious"
    precious.mkdir()
    for name in ("__0_0.distcp", ".metadata"):
        (precious / name).write_bytes(b"precious")
    monkeypatch.setattr(dcp_form, "Disk", lambda: SwappedDisk(moment, precious))
    with pytest.raises(OrchestratorError, match="link|another directory has taken its place"):
        command("export", "run", "--as", "dcp")
    assert {file.read_bytes() for file in precious.iterdir()} == {b"precious"}
    assert not os.path.lexists(run / "checkpoint")


@pytest.mark.parametrize("form", ["classic", "safetensors", "dcp"])
def test_one_tensor_at_a_time_is_in_memory(
    run: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A model that fits no memory as a whole is exported: what is written is let go."""
    alive, most = weakref.WeakSet[torch.Tensor](), 0
    read = ShardReader.read

    def counting(*arguments: Any) -> torch.Tensor:
        nonlocal most
        alive.add(tensor := read(*arguments))
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(ShardReader, "read", counting)
    command("export", "run", "--as", form)
    assert 0 < most <= 2  # the next one is put together before the last one is let go


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "cannot export .* as whole: its tensors are in the files of 4 ranks"),
        (("--as", "state-dict", "--name", "ema"), "it contains|contains only model, optimizer"),
        (("--as", "safetensors", "--name", "optimizer"), "state is of the type dict"),
        (("--as", "dcp", "--name", "model"), "cannot export model alone as dcp"),
        (("--as", "dcp", "-o", "run", "--force"), "cannot write run: it exists"),
        (("--as", "dcp", "-o", "missing/directory"), "No such file or directory"),
    ],
)
def test_impossible_export_is_explained(run: Path, words: tuple[str, ...], text: str) -> None:
    """The message gives the reason or the choices, and nothing is left."""
    before = sorted(os.listdir(run))
    with pytest.raises(OrchestratorError, match=text):
        command("export", "run", *words)
    assert sorted(os.listdir(run)) == before


def test_index_with_more_than_the_files_have_is_refused(files: Path, tmp_path: Path) -> None:
    """A stranger's pieces fit each other, and no file has them of that size."""
    index = json.loads((files / SHARDS_FILE).read_bytes())
    weight = next(tensor for tensor in index["tensors"] if len(tensor["size"]) == 2)
    for sizes in (weight["size"], *(piece["shape"] for piece in weight["pieces"])):
        sizes[1] *= 1 << 30
    for piece in weight["pieces"]:
        piece["offset"][1] *= 1 << 30
    publish(files, tmp_path / "run", {SHARDS_FILE: json.dumps(index).encode()})
    with pytest.raises(OrchestratorError, match=r"has no piece of .* of the shape"):
        command("export", tmp_path / "run", "--as", "classic", "-o", tmp_path / "file.pt")


def test_index_that_does_not_fit_the_files_is_refused(files: Path, tmp_path: Path) -> None:
    """A stranger's index with a size that no file has is refused before memory is taken."""
    text = (files / SHARDS_FILE).read_bytes()
    for old, new in ((b'"size":[7,5]', b'"size":[8,5]'), (b'"float32"', b'"float64"')):
        assert old in text
        run_dir = tmp_path / str(len(new))
        publish(files, run_dir, {SHARDS_FILE: text.replace(old, new)})
        with pytest.raises(OrchestratorError, match=r"cannot read .*ValueError"):
            command("export", run_dir, "--as", "classic", "-o", tmp_path / "file.pt")
