"""A real training step whose state has a given size, and the floors that its bytes set."""

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
        """What a training script saves."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> list[torch.Tensor]:
        """Everything in the state that has weight."""
        moments = [t for state in self.optimizer.state.values() for t in state.values()]
        return [*self.model.parameters(), *moments]


def _layer(width: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    return torch.nn.Linear(width, width), torch.nn.Tanh()


class TinyWorkload(Workload):
    """Many parameters of a few numbers: with Adam's step count each makes four tensors."""

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
    """Bytes of tensors, and a populated page-aligned buffer that they fit into."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._sources = [t.detach().view(-1).view(torch.uint8) for t in tensors if t.ndim]
        self.size = sum(s.numel() for s in self._sources)
        self._is_cuda = self._sources[0].is_cuda
        if self._is_cuda:
            self._buffer = torch.empty(self.size, dtype=torch.uint8, pin_memory=True)
        else:
            self._map = mmap.mmap(-1, self.size)
            self._buffer = torch.frombuffer(self._map, dtype=torch.uint8)
        self._places = list(self._buffer.split([s.numel() for s in self._sources]))
        self.copy()

    def copy(self) -> float:
        """Seconds to copy them into the buffer."""
        began = time.perf_counter()
        for place, source in zip(self._places, self._sources, strict=True):
            place.copy_(source, non_blocking=True)
        if self._is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def clone(self) -> float:
        """Seconds to copy them into fresh memory, page faults included."""
        began = time.perf_counter()
        clones = [torch.empty(s.numel(), dtype=torch.uint8).copy_(s) for s in self._sources]
        seconds = time.perf_counter() - began
        del clones
        return seconds

    def write(self, path: Path) -> float:
        """Seconds to have the buffer on the disk, past the page cache; the file is removed."""
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
    """Seconds to read a file past the page cache."""
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
    """Have the kernel forget a file's pages."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
