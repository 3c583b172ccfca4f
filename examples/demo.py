"""`make demo`: the digits example is stopped, resumed, killed, restarted and finished.

Everything happens through the command line, as a person would do it, in a temporary directory.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

DIGITS = Path(__file__).resolve().with_name("digits.py")
TRAIN = [sys.executable, str(DIGITS), "--epochs", "8"]
ORCHESTRATOR = [sys.executable, "-m", "orchestrator"]
RUN_DIR = Path("runs", "digits")  # the default for this script
STOP_AT_STEP, KILL_AT_STEP = 52, 125  # in mid-epoch: an epoch has 23 steps
DEADLINE_SECONDS = 300.0
POLL_SECONDS = 0.2


def say(text: str) -> None:
    """Print a caption, in bold on a terminal."""
    print(f"\n\033[1m>>> {text}\033[0m" if sys.stdout.isatty() else f"\n>>> {text}", flush=True)


def start() -> subprocess.Popen[bytes]:
    """Start the supervised training in the current directory."""
    say("orchestrator run --every 5s -- python digits.py --epochs 8")
    return subprocess.Popen([*ORCHESTRATOR, "run", "--every", "5s", "--", *TRAIN])


def status() -> dict[str, Any]:
    """Return what `orchestrator status --json` says; nothing before the run exists."""
    result = subprocess.run(
        [*ORCHESTRATOR, "status", str(RUN_DIR), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    content: dict[str, Any] = json.loads(result.stdout) if result.returncode == 0 else {}
    return content


def has_reached(step: int) -> Callable[[], dict[str, Any] | None]:
    """Return a question: the status, once ``step`` is done and no standby is being prepared."""

    def ask() -> dict[str, Any] | None:
        current = status()
        is_importing = (current.get("spare") or {}).get("state") == "importing"
        return None if is_importing or (current.get("step") or 0) < step else current

    return ask


def first_event(name: str, after: float) -> Callable[[], dict[str, Any] | None]:
    """Return a question: the first journal event ``name`` since ``after`` (seconds since 1970)."""

    def ask() -> dict[str, Any] | None:
        for event in map(json.loads, (RUN_DIR / "journal.jsonl").read_text().splitlines()):
            seconds = datetime.fromisoformat(event["time"]).timestamp()
            if event["event"] == name and seconds >= after:
                return {**event, "seconds": seconds - after}
        return None

    return ask


def wait_for(question: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """Ask until there is an answer, and return it; exit when that takes too long."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (answer := question()) is None:
        if time.monotonic() > deadline:
            sys.exit(f"the demo gave up after {DEADLINE_SECONDS:g} s; last status: {status()}")
        time.sleep(POLL_SECONDS)
    return answer


def play() -> int:
    """Stop the training, resume it, kill it, and let it finish; return the run's exit status."""
    supervisor = start()
    wait_for(has_reached(STOP_AT_STEP))
    say("Ctrl-C")
    supervisor.send_signal(signal.SIGINT)
    supervisor.wait()

    say("The same command again: it goes on in the middle of the epoch.")
    supervisor = start()
    trainer = wait_for(has_reached(KILL_AT_STEP))["trainer_pid"]
    say(f"kill -9 {trainer}")
    killed_at = time.time()
    os.kill(trainer, signal.SIGKILL)
    exited = wait_for(first_event("attempt_exited", killed_at))
    resumed = wait_for(first_event("resumed", killed_at))
    say(
        f"Killed at step {exited['step']}, back at step {resumed['step']} "
        f"{resumed['seconds']:.2f} s later."
    )
    code = supervisor.wait()

    say(f"Exit status {code}: training is complete. The checkpoints:")
    subprocess.run([*ORCHESTRATOR, "checkpoints", "list"], check=False)
    return code


def main() -> None:
    """Play the demo in a temporary directory."""
    with (
        tempfile.TemporaryDirectory(prefix="digits-demo-") as directory,
        contextlib.chdir(directory),
    ):
        code = play()
    sys.exit(code)


if __name__ == "__main__":
    main()
