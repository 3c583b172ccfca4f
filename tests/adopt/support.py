"""What tests of adopt mode share: a script that saves, and the scanner of its saves."""

import os
from pathlib import Path

import torch

from orchestrator.adopt.save_scanner import SaveScanner
from orchestrator.adopt.scan_events import Moment, ScanEvent
from orchestrator.adopt.script_files import ScriptFiles
from orchestrator.adopt.seal_store import SealStore
from orchestrator.adopt.unit_pattern import UnitPattern
from orchestrator.adopt.write_ledger import WriteLedger
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.rundir.paths import RunDir


class Script:
    """A directory in which a script saves, and the scanner of it."""

    def __init__(self, root: Path, pattern: str) -> None:
        self.out = root / "out"
        self.out.mkdir(exist_ok=True)
        run = RunDir(root / "run")
        run.create()
        self.now = 0.0
        own = ScriptFiles(UnitPattern.parse(str(self.out / pattern)))
        self.store = Store(run, "0123456789abcdef", disposal=own)
        self.seals = SealStore(self.store, own.pattern)
        self.ledger = WriteLedger(run.write_ledger_file)
        self.scanner = self.scanner_of(str(self.out / pattern))

    def scanner_of(self, pattern: str) -> SaveScanner:
        return SaveScanner(UnitPattern.parse(pattern), self.seals, self.ledger, lambda: self.now)

    def scan(self, moment: Moment = Moment.RUNNING, after: float = 0.0) -> list[ScanEvent]:
        self.now += after
        return self.scanner.scan(moment, Reason.PERIODIC)

    def save(self, name: str, value: float = 0.0) -> None:
        """Write into the file itself, as torch.save does."""
        (self.out / name).parent.mkdir(exist_ok=True)
        torch.save({"a": torch.full((2000,), value)}, self.out / name)

    def tear(self, name: str) -> None:
        with open(self.out / name, "r+b") as file:
            file.truncate(file.seek(0, os.SEEK_END) // 2)

    def steps(self) -> list[int]:
        return [checkpoint.manifest.step for checkpoint in self.store.all()]


def kinds(events: list[ScanEvent]) -> list[type]:
    return [type(event) for event in events]
