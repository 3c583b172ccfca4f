"""A script that saves a JSON file for each step, and hangs once, after step 3, in one of many ways.

``hanging.py WAY [--for-ever] [--saves-on-sigterm | --ignores-sigterm]``: the second attempt finds
the file ``met``, and does not hang unless --for-ever is given.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

HANGS_AT = 3
STEPS = 5


def save() -> None:
    Path("out").mkdir(exist_ok=True)
    # Renamed: a stop in the middle of it leaves no half of a file.
    Path("out/part").write_text(json.dumps({"step": step}))
    Path("out/part").rename(f"out/m_{step}.json")


def save_and_end(signum: int, frame: FrameType | None) -> None:
    global step
    step += 1
    save()
    sys.exit(0)


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def wait_for_a_pipe() -> None:
    os.read(os.pipe()[0], 1)


def wait_for_a_stopped_worker() -> None:
    worker = multiprocessing.Process(target=stop)
    worker.start()
    worker.join()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def spin() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(1000)


WAYS = {
    "sleeps": sleep,
    "stopped": stop,
    "spins": spin,
    "lock": wait_for_a_lock,
    "pipe": wait_for_a_pipe,
    "worker": wait_for_a_stopped_worker,
}

given = os.environ.get("ORCHESTRATOR_RESUME_FROM")
step = json.loads(Path(given).read_text())["step"] if given else 0
signal.signal(signal.SIGURG, lambda *_: Path("disturbed").touch())
if "--saves-on-sigterm" in sys.argv:
    signal.signal(signal.SIGTERM, save_and_end)
elif "--ignores-sigterm" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
while step < STEPS:
    if step == HANGS_AT and ("--for-ever" in sys.argv or not Path("met").exists()):
        Path("met").touch()
        WAYS[sys.argv[1]]()
    step += 1
    save()
    print("saved", step, flush=True)
    time.sleep(0.2)
