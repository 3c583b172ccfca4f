"""Every test here starts without a supervisor, and leaves the process as it found it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from orchestrator.system.stop_signals import STOP_SIGNALS


@pytest.fixture(autouse=True)
def _standalone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings from outside; one thread, since the machine is shared."""
    for name in [n for n in os.environ if n.startswith("ORCHESTRATOR_")] + ["WORLD_SIZE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    touched = (*STOP_SIGNALS, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in touched], DataLoader.__iter__
    yield
    after = [signal.getsignal(number) for number in touched], DataLoader.__iter__
    assert after == before, "the test left signal handlers or DataLoader changed"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
