"""Copies the bytes of storages into a slot: at once from the CPU, on a side stream from CUDA."""

import ctypes
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from orchestrator.training.saving.slot_memory import SlotMemory

# Up to here the tensors that torch would copy with take longer to make than the bytes to copy.
SMALL_BYTES = 1 << 14


class Copier:
    """Copies, and holds the next optimizer step back until what it changes has been copied.

    On CUDA everything but the tensors of optimizers is waited for before the loop's next kernel,
    since a forward pass may change it (running statistics, say). The tensors of optimizers change
    in a step only, so that only the next step has to wait for them.
    """

    def __init__(self) -> None:
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._awaited: list[tuple[int, torch.cuda.Event]] = []
        self._hook: Any = None

    def copy(
        self,
        storages: Iterable[torch.UntypedStorage],
        target: SlotMemory,
        offsets: Iterable[int],
        of_optimizers: Collection[int],
    ) -> list[torch.cuda.Event]:
        """Begin to copy each storage to its offset, in bytes.

        ``of_optimizers`` names storages by their ``_cdata``. The copy is complete once the returned
        events have been synchronised with; there are none for storages on the CPU.
        """
        base = target.data.data_ptr()
        on_devices: dict[int, list[tuple[bool, torch.Tensor, torch.Tensor]]] = {}
        for storage, offset in zip(storages, offsets, strict=True):
            size = storage.nbytes()
            if size <= SMALL_BYTES and storage.device.type == "cpu":
                ctypes.memmove(base + offset, storage.data_ptr(), size)
                continue
            source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            destination = target.data[offset : offset + size]
            if storage.device.type == "cuda":
                may_wait = storage._cdata in of_optimizers
                job = (may_wait, destination, source)
                on_devices.setdefault(storage.device.index, []).append(job)
            else:
                destination.copy_(source)
        return [self._copy_from(device, jobs) for device, jobs in on_devices.items()]

    def _copy_from(
        self, device: int, jobs: list[tuple[bool, torch.Tensor, torch.Tensor]]
    ) -> torch.cuda.Event:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        if self._hook is None:
            self._hook = register_optimizer_step_pre_hook(self._before_optimizer_step)
        beside, current = self._streams[device], torch.cuda.current_stream(device)
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            for may_wait in (False, True):
                for waits, destination, source in jobs:
                    if waits is may_wait:
                        destination.copy_(source, non_blocking=True)
                if not may_wait:
                    current.wait_event(beside.record_event())
            whole: torch.cuda.Event = beside.record_event()
        self._awaited.append((device, whole))
        return whole

    def _before_optimizer_step(self, *_: Any) -> None:
        while self._awaited:
            device, event = self._awaited.pop()
            torch.cuda.current_stream(device).wait_event(event)

    def close(self) -> None:
        """Remove the hook on optimizers."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
