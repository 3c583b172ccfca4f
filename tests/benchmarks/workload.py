"""A training step whose state has a given size, and the floors for copies and writes of it."""

import math
import mmap
import os
import time
from collections.abc import Iterable
from pathlib import Path

import torch

CHUNK_BYTES = 16 << 20
BATCH = 32
# Parameters and the two moments of Adam.
COPIES = 3


class Workload:
    """A multilayer perceptron with Adam; parameters and moments make up about ``state_bytes``."""

    def __init__(self, state_bytes: int, device: str = "cpu") -> None:
        parameter_bytes = state_bytes // COPIES
        width = next(w for w in (512, 2048, 4096) if parameter_bytes <= 24 * 4 * w * w)
        layers = max(1, round(parameter_bytes / (4 * width * (width + 1))))
        torch.manual_seed(1)
        parts = [part for _ in range(layers) for part in _layer(width)]
        self.model: torch.nn.Module = torch.nn.Sequential(*parts).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-5)
        self._inputs = torch.randn(BATCH, width, device=device)
        self._is_cuda = device == "cuda"

    def step(self) -> None:
        """Train one step, and wait for it."""
        self.optimizer.zero_grad()
        (self.model(self._inputs) - self._inputs).square().mean().backward()
        self.optimizer.step()
        if self._is_cuda:
            torch.cuda.synchronize()

    def state(self) -> dict[str, object]:
        """Return what a training script saves."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> list[torch.Tensor]:
        """Return the parameters and the moments."""
        moments = [t for state in self.optimizer.state.values() for t in state.values()]
        return [*self.model.parameters(), *moments]


def _layer(width: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    return torch.nn.Linear(width, width), torch.nn.Tanh()


class TinyWorkload(Workload):
    """Many tiny parameters; with the moments and step count of Adam, each makes four tensors."""

    def __init__(self, tensors: int) -> None:
        torch.manual_seed(1)
        self.model = torch.nn.ParameterList(torch.randn(16) for _ in range(tensors // 4))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-5)

    def step(self) -> None:
        """Train one step."""
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()


class Bytes:
    """The bytes of tensors, and a populated, page-aligned buffer of their size."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._sources = [t.detach().view(-1).view(torch.uint8) for t in tensors if t.ndim]
        self.size = sum(s.numel() for s in self._sources)
        self._is_cuda = self._sources[0].is_cuda
        if self._is_cuda:
            self._buffer = torch.empty(self.size, dtype=torch.uint8, pin_memory=True)
        else:
            self._map = mmap.mmap(-1, self.size)
            self._buffer = torch.frombuffer(self._map, dtype=torch.uint8)
        self._targets = list(self._buffer.split([s.numel() for s in self._sources]))
        self.copy()

    def copy(self) -> float:
        """Copy the bytes into the buffer, and return the seconds."""
        began = time.perf_counter()
        for target, source in zip(self._targets, self._sources, strict=True):
            target.copy_(source, non_blocking=True)
        if self._is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def clone(self) -> float:
        """Copy the bytes into fresh memory, and return the seconds, page faults included."""
        began = time.perf_counter()
        clones = [torch.empty(s.numel(), dtype=torch.uint8).copy_(s) for s in self._sources]
        seconds = time.perf_counter() - began
        del clones
        return seconds

    def write(self, path: Path) -> float:
        """Write the buffer to disk past the page cache, and return the seconds; remove the file."""
        view = memoryview(self._buffer.numpy())
        whole = self.size - self.size % mmap.PAGESIZE
        began = time.perf_counter()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o644)
        for offset in range(0, whole, CHUNK_BYTES):
            os.write(descriptor, view[offset : min(offset + CHUNK_BYTES, whole)])
        os.fsync(descriptor)
        seconds = time.perf_counter() - began
        os.close(descriptor)
        path.unlink()
        return seconds


def read_directly(path: Path) -> float:
    """Read a file past the page cache, and return the seconds."""
    buffer = mmap.mmap(-1, CHUNK_BYTES)
    buffer.write(bytes(CHUNK_BYTES))
    began = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    for number in range(math.ceil(path.stat().st_size / CHUNK_BYTES)):
        os.preadv(descriptor, [buffer], number * CHUNK_BYTES)
    seconds = time.perf_counter() - began
    os.close(descriptor)
    return seconds


def drop_from_cache(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
