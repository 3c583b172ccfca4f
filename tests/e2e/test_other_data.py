"""A trainer that is killed sees the same data again, or its run is not called EXACT."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.support import Supervised, events, forked_by

Start = Callable[..., Supervised]

SCRIPT = """
import os, signal, sys, time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from orchestrator.training import Session

kind, workers = sys.argv[1], int(sys.argv[2])
killed = Path("killed")

def hidden():
    return int.from_bytes(os.urandom(4), "big") if kind == "hidden noise" else 0

class Data(Dataset):
    def __len__(self):
        return 200

    def __getitem__(self, index):
        return torch.tensor([float(index), torch.rand(()).item(), float(hidden())])

class Stream(IterableDataset):
    def __iter__(self):
        yield from (torch.rand(3) for _ in range(200))

def collate(samples):
    batch = torch.stack(samples)
    return {"x": batch, "text": [str(hidden())]}

if kind == "rewritten" and killed.exists():
    Data.__getitem__ = lambda self, index: torch.tensor([index + 1.0, 0.0, 0.0])
data = Stream() if kind == "stream" else Data()
options = {} if kind == "stream" else {"shuffle": True}
loader = DataLoader(data, 2, num_workers=workers, collate_fn=collate, **options)
with Session(model=torch.nn.Linear(1, 1)) as session:
    for _ in session.epochs(1):
        for batch in session.batches(loader):
            if session.global_step == 12 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            batch["x"].zero_()
            time.sleep(0.01)
            session.step()
"""


@pytest.mark.parametrize(
    ("kind", "workers"),
    [("hidden noise", "0"), ("rewritten", "2"), ("the same", "2"), ("stream", "0")],
)
def test_first_batch_after_a_kill_is_compared(
    supervise: Start, warm_server: Path, tmp_path: Path, kind: str, workers: str
) -> None:
    """What came after the snapshot of a killed trainer comes again, or the run is APPROXIMATE."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [*forked_by(warm_server), str(tmp_path / "script.py"), kind, workers]
    run = supervise(command=command, options=("--every", "1h"))
    assert run.end()[0] == 0
    (resumed,) = events(run.run, "resumed")
    assert (resumed["from_memory"], resumed["exactness"]) == (True, "EXACT")
    lost = [event["exactness"] for event in events(run.run, "exactness_lost")]
    if kind in ("the same", "stream"):
        assert lost == []
    else:
        (said,) = lost
        assert (
            f"batch {resumed['step'] + 1} holds other data than it had after the snapshot" in said
        )
