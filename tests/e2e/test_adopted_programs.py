"""The script that puts other people's programs through kills and stops."""

import random
import sys
from dataclasses import asdict
from pathlib import Path

from examples.adopt.programs import Program
from examples.adopt.trial import FAULTS, Trial
from examples.adopt.verdict import broken_promises

SCRIPT = """
import json, sys, time
from pathlib import Path

out = Path("out")
out.mkdir(exist_ok=True)
step = json.loads(Path(sys.argv[1]).read_text())["step"] if sys.argv[1:] else 0
while step < 250:
    step += 1
    print("step", step, flush=True)
    time.sleep(0.01)
    if step % 5 == 0:
        with open(out / f"step-{step}.json", "w") as file:
            file.write('{"step": ')
            file.flush()
            time.sleep(0.2)
            file.write(f"{step}}}")
"""
PLAIN = Program(
    name="plain",
    source="https://example.org",
    checkout="plain",
    command="{python} train.py",
    adopt=("out/step-*.json",),
    resume_arg="{path}",
    progress=r"step (\d+)",
    unit="steps",
    promise="continues",
)


def test_program_goes_through_every_fault(tmp_path: Path) -> None:
    """Each fault is applied and survived, and what the program has saved is loaded once more."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "train.py").write_text(SCRIPT)
    directory = tmp_path / "trial"
    directory.mkdir()
    trial = Trial(PLAIN, sys.executable, tmp_path, directory, most_pause_seconds=0.1)
    trial.prepare()
    outcome = trial.go_through(random.Random(1))
    assert broken_promises(PLAIN, asdict(outcome)) == []
    assert [fault.name for fault in outcome.faults] == list(FAULTS)
    assert outcome.end == 250
    assert outcome.loaded >= 50
    assert any(name.startswith("partial-step-") for name in outcome.set_aside), outcome
