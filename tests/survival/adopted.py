"""Kills and stops unmodified scripts in adopt mode, and compares their final weights.

    python -m tests.survival.adopted [--only NAME]... [--kills 20] [--stops 5] [--seed 1]

Half of the SIGKILLs come at a random moment, the others as soon as a save begins. The final weights
must equal those of an undisturbed run.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from orchestrator.adopt.files import Contents
from tests.e2e.support import (
    Supervised,
    WarmTrainers,
    clean_environment,
    events,
    forked_by,
    forking_server,
    kill_leftovers,
    orchestrator,
    wait_for,
)
from tests.survival.faults import parse

SCRIPTS = Path(__file__).parent.parent / "adopt" / "scripts"
STOPPED = (74, 75)


@dataclass(frozen=True)
class Subject:
    """A script, its arguments, and the options of adopt mode."""

    name: str
    script: str
    arguments: tuple[str, ...]
    options: tuple[str, ...]


ONE_FILE = ("--adopt", "out/last.pt")
PATH_ALONE = ("--resume-arg", "{path}")
SUBJECTS = (
    Subject("one file", "plain.py", (), (*ONE_FILE, "--resume-arg", "--resume {path}")),
    Subject("one file, found by the script", "plain.py", ("--by-itself",), ONE_FILE),
    Subject(
        "numbered files",
        "plain.py",
        ("--numbered",),
        ("--adopt", "out/model_*.pt", "--resume-arg", "--resume {path}"),
    ),
    Subject(
        "Hugging Face Trainer",
        "trainer.py",
        (),
        ("--adopt", "out/checkpoint-*", "--resume-arg", "--resume_from_checkpoint {path}"),
    ),
    Subject("Lightning", "lit.py", (), ("--adopt", "out/*.ckpt", *PATH_ALONE)),
    Subject("Accelerate", "accelerated.py", (), ("--adopt", "out/step_*", *PATH_ALONE)),
)
FRAMEWORKS = ("transformers.trainer", "lightning.pytorch", "accelerate")
# Enough steps, with this pause after each, that no run ends before its last fault.
STEPS, PAUSE = ("--steps", "1000"), ("--pause", "0.03")


class Trial:
    """A run of one subject under faults."""

    def __init__(self, subject: Subject, root: Path, server: Path) -> None:
        self._root = root
        self._options = (*subject.options, "--max-restarts", "100")
        script = str(SCRIPTS / subject.script)
        self._command = [*forked_by(server), script, *subject.arguments, *STEPS]
        self._trainers = WarmTrainers(server)
        self.run = self._start(PAUSE)

    def _start(self, pause: tuple[str, ...]) -> Supervised:
        return Supervised(self._root, command=[*self._command, *pause], options=self._options)

    def inject(self, fault: str, chance: random.Random) -> None:
        """Let the run train for a random time, mostly to a new checkpoint, then inject a fault."""
        trainer = self._trainers.newest()
        assert trainer is not None
        if chance.random() < 0.8:
            count = len(events(self.run.run, "checkpoint_published"))
            self.run.wait_for_event("checkpoint_published", count + 1)
        time.sleep(chance.random())
        if fault == "kill in a save":
            before = self._saved_files()
            wait_for(lambda: self._saved_files() != before, "a save")
        if fault == "stop":
            self.run.signal(signal.SIGTERM)
            assert self.run.end()[0] in STOPPED
            self.run = self._start(PAUSE)
        else:
            trainer.kill()

    def _saved_files(self) -> object:
        out = self._root / "out"
        contents = [Contents.of(path) for path in out.iterdir()] if out.exists() else []
        return {found.path: found.files for found in contents if found}

    def finish(self) -> int:
        """Stop the run, complete it without pauses, and return its exit status."""
        self._trainers.newest()
        self.run.signal(signal.SIGTERM)
        self.run.end()
        self.run = self._start(())
        return self.run.end()[0]


def row(subject: Subject, server: Path, faults: list[str], seed: int) -> str:
    """Run one subject under its faults, and return its row of the table."""
    chance = random.Random(seed)
    chance.shuffle(faults)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="survival-") as directory:
        root = Path(directory)
        undisturbed = root / "undisturbed"
        undisturbed.mkdir()
        script = str(SCRIPTS / subject.script)
        subprocess.run(
            [*forked_by(server), script, *subject.arguments, *STEPS],
            cwd=undisturbed,
            env=clean_environment(),
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        trial = Trial(subject, root, server)
        try:
            for fault in faults:
                trial.inject(fault, chance)
            status = trial.finish()
        finally:
            trial.run.process.kill()
            kill_leftovers(trial.run.run)
        final, expected = (torch.load(path / "final.pt") for path in (root, undisturbed))
        equal = all(torch.equal(final[name], expected[name]) for name in expected)
        verified = orchestrator("checkpoints", "verify", "run", cwd=root).returncode == 0
        quarantined = len(list(trial.run.run.quarantine.glob("partial-*")))
        attempts = len(events(trial.run.run, "attempt_started"))
    counts = (faults.count(name) for name in ("kill", "kill in a save", "stop"))
    words = ("yes" if outcome else "**no**" for outcome in (status == 0, verified, equal))
    minutes = f"{(time.monotonic() - began) / 60:.1f}"
    return " | ".join(
        ("", subject.name, *map(str, (*counts, attempts, quarantined)), *words, minutes, "")
    )


def rows(subjects: list[Subject], faults: list[str], seed: int) -> Iterator[str]:
    """Yield the lines of a Markdown table with a row for each subject."""
    yield (
        "| script | kills | in a save | stops | attempts | saves set aside | complete | all valid "
        "| equal | minutes |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    with tempfile.TemporaryDirectory(prefix="survival-") as directory:
        server = Path(directory) / "server"
        with forking_server(server, *FRAMEWORKS, PYTHONPATH=str(SCRIPTS)):
            for subject in subjects:
                yield row(subject, server, list(faults), seed).strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.survival.adopted", description=__doc__)
    names = [subject.name for subject in SUBJECTS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME")
    args, faults = parse(parser)
    chosen = [subject for subject in SUBJECTS if not args.only or subject.name in args.only]
    table = []
    for line in rows(chosen, faults, args.seed):
        table.append(line)
        print(line, flush=True)
    sys.exit(any("**no**" in line for line in table))


if __name__ == "__main__":
    main()
