"""A script that saves JSON files in one of several ways, and is killed until its last attempt.

``restarted.py WAY ATTEMPTS``: a file beside it counts the attempts.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from published import count_checkpoints, wait_for_checkpoint

PAUSE_SECONDS = 0.4
# A part that was just written counts as a save under way for a second.
TRAINING_SECONDS = 2.0


def save(path: Path, content: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    print("saved", path, flush=True)
    time.sleep(PAUSE_SECONDS)


def save_slowly(path: Path, content: dict[str, int]) -> None:
    """Write two halves, with a pause in which a stop may come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content)
    with open(path, "w") as file:
        file.write(text[:5])
        file.flush()
        print("half of", path, flush=True)
        time.sleep(2)
        file.write(text[5:])
    print("all of", path, flush=True)


way, attempts = sys.argv[1], int(sys.argv[2])
counter = Path("attempts")
attempt = int(counter.read_text()) if counter.exists() else 0
counter.write_text(str(attempt + 1))
given = os.environ.get("ORCHESTRATOR_RESUME_FROM")
work = json.loads(Path(given).read_text())["work"] if given and way == "renumber" else 0
print("begins with work", work, flush=True)
for epoch in range(3):
    work += 1
    match way:
        case "renumber":
            before = count_checkpoints()
            save(Path(f"out/m_{epoch}.json"), {"work": work})
            wait_for_checkpoint(before)
        case "unread":
            save(Path("out/last.json"), {"work": work})
        case "elsewhere":
            save(Path(f"out{attempt or ''}/last.json"), {"work": work})
        case "file":
            save_slowly(Path(f"out/m_{epoch}.json"), {"work": work})
        case "directory":
            save_slowly(Path(f"out/m_{epoch}/a.json"), {"work": work})
        case "renamed":
            save_slowly(Path("out/tmp_last.json"), {"work": work})
            os.replace("out/tmp_last.json", "out/last.json")
            print("renamed", flush=True)
    if way in ("file", "directory", "renamed"):
        time.sleep(TRAINING_SECONDS)
    if epoch == 1 and attempt + 1 < attempts:
        os.kill(os.getpid(), signal.SIGKILL)
