"""What cannot be stored or checked: refused by name at the first save, later no end of training."""

import collections
import random
import resource
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.checkpoint.store import Store
from orchestrator.rundir.paths import RunDir
from orchestrator.training import Session, TrainingRefused
from tests.training.support import as_new_process


def train(
    run_dir: Path,
    steps: int,
    prepare: Callable[[torch.nn.Module], None] = lambda model: None,
    at_step: Callable[[Session, torch.nn.Module], None] = lambda session, model: None,
) -> Session:
    """Train in a process of its own, as far as the session can tell."""
    as_new_process()
    model = torch.nn.Linear(2, 1)
    prepare(model)
    optimizer = torch.optim.Adam(model.parameters())
    session = Session(run_dir=run_dir, model=model, optimizer=optimizer)
    with session:
        for _ in session.steps(steps):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            at_step(session, model)
            session.step()
    return session


def last_content(run_dir: Path) -> dict[str, Any]:
    newest = Store.open(RunDir(run_dir), []).all()[-1]
    content: dict[str, Any] = torch.load(newest.state_file)
    return content


UNUSUAL = {
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "half complex": lambda: torch.ones(3).to(torch.complex32),
    "bits": lambda: torch.ones(4, dtype=torch.uint8).view(torch.bits8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_tensor_that_torch_can_store_is_stored_and_resumed(kind: str, tmp_path: Path) -> None:
    """A tensor for which torch has no sum or image is saved and restored, also with -W error."""

    def add(model: torch.nn.Module) -> None:
        model.register_buffer("unusual", UNUSUAL[kind]())
        warnings.simplefilter("error")

    train(tmp_path, 2, add)
    warnings.simplefilter("ignore")
    assert train(tmp_path, 4, add).exactness == "EXACT"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.ones(3).to_mkldnn(), "_mkldnn"),
        (lambda: torch.empty(3, dtype=torch.uint4), "torch.uint4"),
        (lambda: torch.ones(3, dtype=torch.complex64).imag, "different types"),
    ],
)
def test_tensor_that_torch_cannot_store_is_refused_at_the_first_step(
    make: Callable[[], torch.Tensor],
    problem: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A tensor that torch cannot save or load is refused by name in the first step."""

    def add(model: torch.nn.Module) -> None:
        tensor = make()
        model.register_buffer("unusual", tensor)
        if problem == "different types":
            model.register_buffer("whole", tensor._base)

    session = None
    with pytest.raises(TrainingRefused) as refused:
        session = train(tmp_path, 100, add)
    assert session is None
    assert refused.value.status == 78
    message = capsys.readouterr().err
    assert "cannot store model_state_dict" in message
    assert problem in message


def _new_entry(session: Session) -> None:
    session.state["seen"] = collections.Counter("abc")


def _changed_entry(session: Session) -> None:
    session.state["best"] = object()


def _nested_entry(session: Session) -> None:
    session.state["nested"]["bad"] = print


def _bad_key(session: Session) -> None:
    session.state["nested"][print] = 1


@pytest.mark.parametrize("change", [_new_entry, _changed_entry, _nested_entry, _bad_key])
def test_value_that_becomes_unstorable_is_left_out(
    change: Callable[[Session], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the first save an unstorable value costs itself and the word EXACT, and no more."""

    def at_step(session: Session, model: torch.nn.Module) -> None:
        if session.global_step == 0:
            session.state.update(best=1.5, nested={"good": 2})
        if session.global_step > 2:
            change(session)
            session.checkpoint()

    train(tmp_path, 6, at_step=at_step)
    state = last_content(tmp_path)["state"]
    assert state == {"best": 1.5, "nested": {"good": 2}}
    assert capsys.readouterr().err.count("training goes on") == 1
    assert "could not be stored" in str(train(tmp_path, 7).exactness)


def test_object_whose_state_fails_later_keeps_its_last_one(tmp_path: Path) -> None:
    """A state_dict() that begins to raise after the first save does not end the training."""

    class Failing:
        calls = 0

        def state_dict(self) -> dict[str, int]:
            self.calls += 1
            if self.calls > 4:
                raise OSError("gone")
            return {"calls": self.calls}

        def load_state_dict(self, state: Any) -> None:
            pass

    with Session(run_dir=tmp_path, model=torch.nn.Linear(1, 1), odd=Failing()) as session:
        for _ in session.steps(8):
            session.step()
            session.checkpoint()
    assert last_content(tmp_path)["odd_state_dict"] == {"calls": 4}


def test_module_that_becomes_unstorable_keeps_its_last_state(tmp_path: Path) -> None:
    """A nested tensor, which its module could not load, is refused when it is captured."""

    def at_step(session: Session, model: torch.nn.Module) -> None:
        if session.global_step == 3:
            model.register_buffer("odd", torch.nested.nested_tensor([torch.ones(2)]))
        if session.global_step:
            session.checkpoint()

    session = train(tmp_path, 6, at_step=at_step)
    assert last_content(tmp_path)["model_state_dict"].keys() == {"weight", "bias"}
    assert session.global_step == 6


def test_kept_object_that_becomes_unstorable_keeps_its_last_state(tmp_path: Path) -> None:
    """A lock in a replay buffer after the first save does not end the training."""
    buffer: dict[str, Any] = {"entries": [1]}
    with Session(run_dir=tmp_path).keep(buffer=buffer) as session:
        for step in session.steps(6):
            buffer["entries"].append(step)
            if step == 3:
                buffer["lock"] = threading.Lock()
            session.step()
            session.checkpoint()
    kept = str(last_content(tmp_path)["buffer_state_dict"])
    assert "[1, 0, 1, 2]" in kept


def test_state_with_a_freed_storage_is_never_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While weights have no memory nothing is saved, and a final state without them is refused."""
    saved = []

    def at_step(session: Session, model: Any) -> None:
        storage = model.weight.untyped_storage()
        size = storage.nbytes()
        session.checkpoint() if session.global_step else None
        if session.global_step == 3:
            storage.resize_(0)
            saved.append(session.checkpoint())
            storage.resize_(size)
            model.weight.data.fill_(1.0)
        if session.global_step == 5:
            storage.resize_(0)

    with pytest.raises(TrainingRefused) as refused:
        train(tmp_path, 6, at_step=at_step)
    assert saved == [None]
    assert refused.value.status == 78
    assert (
        "model_state_dict['weight'] in a checkpoint: its storage is freed"
        in capsys.readouterr().err
    )
    assert last_content(tmp_path)["step"] == 5


@pytest.fixture
def other_bit_generator() -> Iterator[None]:
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(7))
    yield
    np.random.set_bit_generator(before)


def test_numpy_stream_of_another_bit_generator_is_restored(
    other_bit_generator: None, tmp_path: Path
) -> None:
    """NumPy's global stream continues after a resume whatever its bit generator is."""
    drawn: list[float] = []

    def at_step(session: Session, model: torch.nn.Module) -> None:
        drawn.append(np.random.rand())

    train(tmp_path, 2, at_step=at_step)
    np.random.set_bit_generator(np.random.PCG64(99))
    assert train(tmp_path, 4, at_step=at_step).exactness == "EXACT"
    expected = np.random.RandomState(np.random.PCG64(7))
    assert drawn == [expected.rand() for _ in range(4)]


def test_stream_of_another_bit_generator_than_saved_is_named(
    other_bit_generator: None, tmp_path: Path
) -> None:
    """A resume with another bit generator says so, and goes on."""
    train(tmp_path, 2)
    np.random.set_bit_generator(np.random.MT19937(1))
    assert "bit generator was PCG64" in str(train(tmp_path, 4).exactness)
    random.seed(0)


def test_limit_on_file_sizes_ends_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the snapshot memory would be larger than a file may be, checkpoints do without it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        train(tmp_path, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert last_content(tmp_path)["step"] == 3
    assert "File too large; the next ones use the slower torch.save" in capsys.readouterr().err
