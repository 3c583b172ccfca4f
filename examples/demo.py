"""`make demo`: the digits example is stopped, resumed, killed, restarted and finished.

Everything happens through the command line, as a person would do it, in a temporary directory.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIGITS = Path(__file__).with_name("digits.py")
TRAIN = [sys.executable, str(DIGITS), "--epochs", "8"]
ORCHESTRATOR = [sys.executable, "-m", "orchestrator"]
DEADLINE_SECONDS = 300.0


def say(text: str) -> None:
    print(f"\n\033[1m>>> {text}\033[0m" if sys.stdout.isatty() else f"\n>>> {text}", flush=True)


def start(run_dir: str) -> subprocess.Popen[bytes]:
    say("orchestrator run -- python examples/digits.py --epochs 8")
    return subprocess.Popen(
        [*ORCHESTRATOR, "run", "--run-dir", run_dir, "--every", "5s", "--", *TRAIN]
    )


def status(run_dir: str) -> dict[str, Any]:
    result = subprocess.run(
        [*ORCHESTRATOR, "status", run_dir, "--json"], capture_output=True, text=True, check=False
    )
    content: dict[str, Any] = json.loads(result.stdout) if result.returncode == 0 else {}
    return content


def wait_until(run_dir: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition(current := status(run_dir)):
        if time.monotonic() > deadline:
            sys.exit(f"the demo waited {DEADLINE_SECONDS:g} s in vain; last status: {current}")
        time.sleep(0.2)
    return current


def is_at(epoch: int) -> Callable[[dict[str, Any]], bool]:
    return lambda current: (current.get("epoch") or 0) >= epoch


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="digits-demo-") as run_dir:
        supervisor = start(run_dir)
        wait_until(run_dir, is_at(2))
        say("a scheduler would now send SIGTERM")
        supervisor.send_signal(signal.SIGTERM)
        say(f"it ended with status {supervisor.wait()}: stopped on request, state saved")

        say("the same command again resumes in the middle of the epoch")
        supervisor = start(run_dir)
        trainer = wait_until(run_dir, is_at(5))["trainer_pid"]
        say(f"kill -9 {trainer}: the trainer has no time to react, and is restarted")
        os.kill(trainer, signal.SIGKILL)
        code = supervisor.wait()
        say(f"it ended with status {code}: training is complete. The checkpoints:")
        subprocess.run([*ORCHESTRATOR, "checkpoints", "list", run_dir], check=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
