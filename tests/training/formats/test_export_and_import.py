"""`checkpoints export` and `import` exchange weights with other programs."""

import copy
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from orchestrator.checkpoint.checkpoint import read_checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.publication import publish_files
from orchestrator.checkpoint.store import Store
from orchestrator.cli.parser import parse
from orchestrator.errors import OrchestratorError
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.paths import RunDir
from orchestrator.training import Session
from orchestrator.training.formats import classic
from tests.checkpoint.support import manifest_of
from tests.training.support import as_new_process

STEPS, EPOCHS = 6, 2
FILES = {"state-dict": "model.pt", "safetensors": "model.safetensors", "classic": "checkpoint.pt"}


class Odd(nn.Module):
    """A model with every property of a state_dict that a format can get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight  # tied
        self.norm = nn.BatchNorm1d(4)
        self.brain = nn.Parameter(torch.randn(3).to(torch.bfloat16))
        self.scale = nn.Parameter(torch.randn(()))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("empty_too", torch.empty(0, 3))
        self.register_buffer("across", torch.randn(3, 2).to(torch.float16).t())
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("eighth", torch.randn(3).to(torch.float8_e4m3fn))
        self.register_buffer("chosen", torch.tensor([True, False]))
        self.register_buffer("many", torch.tensor(2**40 + 1))
        self.register_buffer("wave", torch.randn(2, dtype=torch.complex64))
        self.register_buffer("mirrored", self.wave.conj())
        self.register_buffer("turned", torch._neg_view(torch.randn(2)))
        line = torch.randn(6)
        self.register_buffer("front", line[:4])
        self.register_buffer("back", line[2:])

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        features = self.norm(self.embedding(numbers)) * self.scale + self.brain.sum().float()
        return torch.as_tensor(self.head(features))


def parts_of(model: nn.Module) -> dict[str, Any]:
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}


def train(run_dir: Path, parts: dict[str, Any], epochs: int = EPOCHS) -> Session:
    """Train until ``epochs`` epochs are complete."""
    as_new_process()
    session = Session(run_dir=run_dir, **parts)
    with session:
        for _ in session.epochs(epochs):
            for _ in range(STEPS // EPOCHS):
                loss = parts["model"](torch.arange(5)).square().mean()
                loss.backward()
                parts["optimizer"].step()
                parts["optimizer"].zero_grad()
                session.step(loss=loss)
    return session


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Any]:
    """Return the registered objects of a run that has completed in the directory ``run``."""
    torch.manual_seed(0)
    parts = parts_of(Odd())
    train(tmp_path / "run", parts)
    return parts


def command(*words: str | Path) -> None:
    """Run a command line in this process."""
    arguments = parse(["checkpoints", *map(str, words)])
    arguments.run_command(arguments)


def assert_same(value: Any, expected: Any) -> None:
    """Assert equal types, shapes and bits."""
    if isinstance(expected, torch.Tensor):
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
        assert torch.equal(value, expected)
    elif isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key in expected:
            assert_same(value[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(value) == len(expected)
        for a, b in zip(value, expected, strict=True):
            assert_same(a, b)
    else:
        assert value == expected


def newest(run_dir: Path) -> Any:
    return Store.open(RunDir(run_dir), []).all()[-1]


# --- export --------------------------------------------------------------------------------------


def test_exported_state_dict_equals_that_of_the_model(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    """The safe load reads every value, tied weights stay tied, and a model loads the state."""
    command("export", "run", "--as", "state-dict")
    state = torch.load("model.pt", weights_only=True)
    assert_same(dict(state), dict(trained["model"].state_dict()))
    assert state["embedding.weight"].data_ptr() == state["head.weight"].data_ptr()
    assert state._metadata == trained["model"].state_dict()._metadata
    Odd().load_state_dict(state)
    assert os.listdir(tmp_path).count("model.pt") == 1
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_export_of_any_registered_object(trained: dict[str, Any]) -> None:
    """An object such as an optimizer is exported by its name, and the file has that name."""
    command("export", "run", "--as", "state-dict", "--name", "optimizer")
    assert_same(torch.load("optimizer.pt"), trained["optimizer"].state_dict())


def test_safetensors_contain_every_tensor_once(trained: dict[str, Any]) -> None:
    """If several names share a tensor, the first is in the file, the others in its text."""
    command("export", "run", "-o", "weights.safetensors")
    expected = dict(trained["model"].state_dict())
    del expected["head.weight"]
    assert_same(safetensors.torch.load_file("weights.safetensors"), expected)
    with safetensors.safe_open("weights.safetensors", framework="pt") as file:
        text = file.metadata()
    assert text["head.weight"] == "embedding.weight"
    assert (text["format"], text["step"], text["epoch"]) == ("pt", str(STEPS), str(EPOCHS))


def test_safetensors_load_with_the_loader_of_their_package(tmp_path: Path) -> None:
    """The strict loader of safetensors loads an export of a model with tied weights."""
    models = Odd(), Odd()
    for model in models:
        # It refuses models with overlapping or conjugated buffers.
        del model.front, model.back, model.mirrored
    train(tmp_path / "run", parts_of(models[0]))
    command("export", "run", "--as", "safetensors")
    safetensors.torch.load_model(models[1], "model.safetensors")
    assert_same(dict(models[1].state_dict()), dict(models[0].state_dict()))


def test_safetensors_of_tensors_named_by_numbers(tmp_path: Path) -> None:
    """The step and epoch in the text are not mistaken for ties of tensors named by numbers."""
    parts = {"model": nn.ParameterList([torch.rand(1), torch.rand(2)])}
    with Session(run_dir="run", **parts) as session:
        session.step()
    command("export", "run", "--as", "safetensors")
    command("import", "model.safetensors", "other")
    assert list(torch.load(newest(Path("other")).state_file)["model_state_dict"]) == ["0", "1"]


def test_exported_classic_file_fits_common_resume_code(trained: dict[str, Any]) -> None:
    """The entries are those of PyTorch's tutorial, without entries of the orchestrator."""
    command("export", "run", "--as", "classic")
    checkpoint = torch.load("checkpoint.pt", weights_only=True)
    parts = parts_of(Odd())
    parts["model"].load_state_dict(checkpoint["model_state_dict"])
    parts["optimizer"].load_state_dict(checkpoint["optimizer_state_dict"])
    assert_same(dict(parts["model"].state_dict()), dict(trained["model"].state_dict()))
    assert_same(parts["optimizer"].state_dict(), trained["optimizer"].state_dict())
    assert checkpoint["epoch"] == EPOCHS
    assert checkpoint["loss"] > 0
    assert checkpoint.keys().isdisjoint({"rng", "data", "state"})


def test_export_replaces_a_file_only_with_force(trained: dict[str, Any]) -> None:
    """An existing file is not replaced by an export of any form without --force."""
    for form, name in {**FILES, "whole": "checkpoint.pt"}.items():
        Path(name).write_text("precious")
        with pytest.raises(OrchestratorError, match=f"cannot write {name}: .* --force"):
            command("export", "run", "--as", form)
        assert Path(name).read_text() == "precious"
        os.chmod(name, 0o600)
        command("export", "run", "--as", form, "--force")
        assert Path(name).stat().st_size > 1000
        assert Path(name).stat().st_mode == Path("run/run.json").stat().st_mode


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--as", "state-dict", "--name", "ema"), "it contains only model, optimizer"),
        (("--as", "safetensors", "--name", "optimizer"), "state is of the type dict"),
        (("--as", "classic", "--name", "model"), "cannot export model alone as classic"),
        (("--name", "model"), "cannot export model alone as whole"),
        (("--as", "classic", "-o", "missing/file.pt"), "No such file or directory"),
        (("--as", "safetensors", "-o", "missing/file"), "cannot write missing/file: No such file"),
        (("--force", "-o", "."), "not a regular file"),
        (("--force", "-o", "run"), "not a regular file"),
    ],
)
def test_impossible_export_is_explained(
    trained: dict[str, Any], tmp_path: Path, words: tuple[str, ...], text: str
) -> None:
    """The message gives the reason or the choices, and no file is left."""
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OrchestratorError, match=text):
        command("export", "run", *words)
    assert sorted(os.listdir(tmp_path)) == before


def test_dtype_that_safetensors_lack_is_named(tmp_path: Path) -> None:
    """A dtype that the format lacks is refused by name; a state_dict can hold it."""
    model = nn.Linear(1, 1).to(torch.complex128)
    with Session(run_dir="run", model=model) as session:
        session.step()
    with pytest.raises(OrchestratorError, match="complex128"):
        command("export", "run", "--as", "safetensors")
    command("export", "run", "--as", "state-dict")
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "run"]


def test_damaged_checkpoint_is_not_exported(trained: dict[str, Any]) -> None:
    """A changed bit is detected before anything is exported."""
    damaged = newest(Path("run"))
    data = bytearray(damaged.state_file.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.state_file.write_bytes(data)
    for form, name in FILES.items():
        with pytest.raises(OrchestratorError, match="wrong digest"):
            command("export", "run", "--as", form, "--step", str(STEPS))
        assert not Path(name).exists()


def test_missing_safetensors_package_is_explained(
    trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package a file is written, and the message says what reading one needs."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, name, None)
    command("export", "run", "--as", "safetensors")
    with pytest.raises(OrchestratorError, match="safetensors is not installed; pip install"):
        command("import", "model.safetensors", "new")


# --- import --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FILES)
def test_exported_file_can_be_imported(trained: dict[str, Any], form: str) -> None:
    """A new run continues from an imported export with equal values, and is APPROXIMATE."""
    command("export", "run", "--as", form)
    command("import", FILES[form], "new")
    imported = newest(Path("new"))
    assert imported.manifest.reason is Reason.IMPORTED
    torch.manual_seed(1)
    parts = parts_of(Odd())
    session = Session(run_dir="new", **parts)
    with session:
        assert_same(dict(parts["model"].state_dict()), dict(trained["model"].state_dict()))
        counters = (STEPS, EPOCHS) if form == "classic" else (0, 0)
        assert (session.global_step, session.epoch) == counters
        if form == "classic":
            assert_same(parts["optimizer"].state_dict(), trained["optimizer"].state_dict())
    assert session.resumed_from == imported.path.absolute()
    assert session.exactness == (
        f"APPROXIMATE: it continues from {FILES[form]}, which has no random streams and no "
        "position in the data"
    )


def test_run_from_an_import_resumes_as_any_other(
    trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its later checkpoints are complete, and keep the reason for APPROXIMATE."""
    command("export", "run", "--as", "classic")
    command("import", "checkpoint.pt", "new")
    torch.manual_seed(1)
    parts = parts_of(Odd())
    train(Path("new"), parts, EPOCHS + 1)
    again = parts_of(Odd())
    session = train(Path("new"), again, EPOCHS + 2)
    assert session.global_step == STEPS * 2
    assert str(session.exactness).startswith("APPROXIMATE: it continues from checkpoint.pt")
    assert "resumed at step 6" in capsys.readouterr().err


def test_import_of_a_classic_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that a script wrote is imported with its epoch; unknown entries are named."""
    model = nn.Linear(2, 1)
    content = {"epoch": 3, "model_state_dict": model.state_dict(), "loss": torch.tensor([0.5])}
    torch.save(content | {"args": {"lr": 1}, "best": 0.7}, "old.pth")
    command("import", "old.pth", "new")
    assert "left out: args, best" in capsys.readouterr().out
    imported = newest(tmp_path / "new")
    assert (imported.manifest.epoch, imported.manifest.metrics) == (3, {"loss": 0.5})
    assert torch.load(imported.state_file).keys() == {"epoch", "step", "loss", "model_state_dict"}


def test_import_of_weights_alone_takes_a_name_and_counters(tmp_path: Path) -> None:
    """Weights alone become those of the named object, at the given epoch and step."""
    torch.save(nn.Linear(2, 1).state_dict(), "weights.pt")
    command("import", "weights.pt", "new", "--name", "net", "--epoch", "2", "--step", "40")
    session = Session(run_dir="new", net=nn.Linear(2, 1))
    with session:
        assert (session.epoch, session.global_step) == (2, 40)


def test_import_of_an_earlier_step_is_refused(trained: dict[str, Any]) -> None:
    """A run with a later checkpoint would not use the file, so the import is refused."""
    command("export", "run", "--as", "state-dict")
    before = os.listdir("run/checkpoints")
    with pytest.raises(OrchestratorError, match=f"has a checkpoint of step {STEPS}.*--step 7"):
        command("import", "model.pt", "run")
    assert os.listdir("run/checkpoints") == before
    command("import", "model.pt", "run", "--step", str(STEPS + 1))
    assert newest(Path("run")).manifest.step == STEPS + 1


def test_complete_run_continues_from_an_import(trained: dict[str, Any]) -> None:
    """The run is no longer complete, the journal names the file, and training starts from it."""
    command("export", "run", "--as", "classic")
    assert Path("run/done.json").exists()
    command("import", "checkpoint.pt", "run")
    assert not Path("run/done.json").exists()
    event = json.loads(Path("run/journal.jsonl").read_text().splitlines()[-1])
    assert (event["event"], event["source"]) == ("checkpoint_published", "checkpoint.pt")
    session = train(Path("run"), parts_of(Odd()), EPOCHS + 1)
    assert str(session.resumed_from).endswith(f"step-{STEPS:012d}-2")


def test_import_into_a_run_in_use_is_refused(tmp_path: Path) -> None:
    """An import is refused while a process trains in the run directory."""
    torch.save(nn.Linear(2, 1).state_dict(), "weights.pt")
    run_dir = RunDir(tmp_path / "run")
    run_dir.create()
    lock = RunLock(run_dir)
    try:
        with pytest.raises(OrchestratorError, match="is training in it"):
            command("import", "weights.pt", "run")
    finally:
        lock.close()


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    content: list[Any] = []
    for _ in range(depth):
        content = [content]
    return content


def doubled(depth: int) -> list[Any]:
    """A small file whose content is walked 2 ** depth times."""
    content: list[Any] = []
    for _ in range(depth):
        content = [content, content]
    return content


def damaged_safetensors(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-50])


ONE = torch.zeros(1)
META = torch.empty(3, device="meta")


class Large:
    """What a few bytes of a file make large when they are loaded."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return bytearray, (3 << 30,)


def compressed(path: Path) -> None:
    torch.save({"epoch": 1, "m_state_dict": {"w": torch.zeros(10**6)}}, path)
    with zipfile.ZipFile(path) as old:
        members = {member: old.read(member) for member in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member, content in members.items():
            new.writestr(member, content)


def overlapping(path: Path) -> None:
    torch.save({"epoch": 1, "m_state_dict": {"w": torch.zeros(10**5)}}, path)
    with zipfile.ZipFile(path, "a") as archive:
        (large,) = (info for info in archive.filelist if info.file_size > 10**5)
        for number in range(5):
            again = copy.copy(large)
            again.filename = f"{large.filename}{number}"
            archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_text("text"), "give a file that torch.load reads"),
        (lambda path: path.write_bytes(b""), "give a file that torch.load reads"),
        (lambda path: torch.save([1], path), "it holds a list"),
        (lambda path: torch.save({}, path), "must have an 'epoch' and a '<name>_state_dict'"),
        (lambda path: torch.save({"epoch": 1, "weights": 1}, path), "its keys are epoch, weights"),
        (lambda path: torch.save({"state": {}, "param_groups": []}, path), "state, param_groups"),
        (lambda path: torch.save(nn.Linear(1, 1), path), "Weights only load failed"),
        (
            lambda path: torch.save({"epoch": 2**63, "model_state_dict": {}}, path),
            "'epoch' is 9223372036854775808, not a whole number",
        ),
        (
            lambda path: torch.save({"epoch": 1, "step": 10**12, "model_state_dict": {}}, path),
            "'step' is 1000000000000, not a whole number of at least 0 and at most 999999999999",
        ),
        (
            lambda path: torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, path),
            "its tensors spread their data over 4000000000000 bytes",
        ),
        (
            lambda path: torch.save({f"w{i}": ONE.expand(10**8) for i in range(20)}, path),
            "its tensors spread their data over 1200000000 bytes",
        ),
        (
            lambda path: torch.save({"epoch": 1, "m_state_dict": {"w": Large()}}, path),
            "it asks for far more memory than its size",
        ),
        (os.mkfifo, "is not a regular file"),
        (compressed, "it is compressed"),
        (overlapping, "its parts share their data"),
        (
            lambda path: torch.save({"epoch": 1, "o_state_dict": {"w": META}}, path),
            "it has a tensor without data",
        ),
        (lambda path: torch.save({"epoch": 1, "m_state_dict": nested(200)}, path), "too deeply"),
        (
            lambda path: torch.save({"epoch": -1, "model_state_dict": {}}, path),
            "'epoch' is -1, not a whole number of at least 0",
        ),
        (
            lambda path: torch.save({"w": torch.tensor([1, float("nan")])}, path),
            "w of model contains NaN",
        ),
        (damaged_safetensors, "cannot read file: .*not fully covered"),
    ],
)
def test_unusable_file_is_not_imported(
    tmp_path: Path, make: Callable[[Path], Any], text: str
) -> None:
    """The message gives the reason, and no run directory is created."""
    make(tmp_path / "file")
    with pytest.raises(OrchestratorError, match=text) as refused:
        command("import", "file", "new")
    assert refused.value.status == 78
    assert not (tmp_path / "new").exists()


def test_small_file_with_an_endless_content_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a few bytes describe is walked up to a limit, which is lower here to save time."""
    monkeypatch.setattr(classic, "MOST_PARTS", 100_000)
    torch.save({"epoch": 1, "m_state_dict": doubled(40)}, tmp_path / "file")
    with pytest.raises(OrchestratorError, match="refers to itself too often"):
        command("import", "file", "new")
    assert not (tmp_path / "new").exists()


def test_import_with_an_invalid_name_is_refused(tmp_path: Path) -> None:
    """A name that cannot be a keyword argument is refused at once."""
    with pytest.raises(OrchestratorError, match="not a name that a keyword"):
        command("import", "file", "new", "--name", "my model")


def test_imported_checkpoint_can_be_verified(trained: dict[str, Any]) -> None:
    """An imported checkpoint has a manifest and a digest like any other."""
    command("export", "run", "--as", "safetensors")
    command("import", "model.safetensors", "new")
    command("verify", "new")
    assert read_checkpoint(newest(Path("new")).path).manifest.healthy


def test_run_of_a_framework_is_neither_exported_nor_imported(tmp_path: Path) -> None:
    """An export names the framework's files; an import is refused, as it would not be read."""
    (tmp_path / "saved").mkdir()
    RunDir(Path("run")).create()
    (tmp_path / "saved" / "weights.bin").write_bytes(b"weights")
    store = Store.open(RunDir(Path("run")), [])
    draft = manifest_of(7, run_id=store.run_id, framework="transformers")
    publish_files(store, draft, tmp_path / "saved", link=False)
    for form in ("whole", *FILES):
        with pytest.raises(OrchestratorError, match="copy its files from run/.*/content"):
            command("export", "run", "--as", form)
    torch.save(nn.Linear(2, 1).state_dict(), "weights.pt")
    with pytest.raises(OrchestratorError, match="the run belongs to the trainer of transformers"):
        command("import", "weights.pt", "run", "--step", "8")
