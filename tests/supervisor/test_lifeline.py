"""What a killed supervisor's lifeline ends in a container, where all the dead have one id."""

import subprocess
import sys
from pathlib import Path

import pytest

# A run whose supervisor is killed, and a job that has nothing to do with it. In the usual idiom of
# flock(1) the process that has taken the job's lock has ended. A supervisor has started both.
SCENE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.orphans import OrphanEnding
from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.lifeline import lifeline
from orchestrator.system.process_tree import has_ended

root, is_replaced = Path(sys.argv[1]), sys.argv[2] == "replaced"
run = RunDir(root / "run")
os.environ["ORCHESTRATOR_RUN_DIR"] = str(run.root)
run.create()
idiom = f"(flock -n 9; exec sleep 600) 9>{root}/backup.lock & wait"
job = subprocess.Popen(["setsid", "sh", "-c", idiom])
while not (root / "backup.lock").exists():
    time.sleep(0.01)
told, tell = os.pipe()
if (supervisor := os.fork()) == 0:
    with lifeline(run, OrphanEnding(0.1, signal.SIGTERM)) as name_lock:
        lock = RunLock(run)
        os.fchmod(lock.descriptor, 0o660)
        name_lock(lock)
        words = ["setsid", "sleep", "600"]
        command = subprocess.Popen(words, pass_fds=[lock.descriptor])
        os.write(tell, str(command.pid).encode())
        signal.pause()
command = int(os.read(told, 100))
if is_replaced:
    run.lock_file.rename(run.root / "lock.old")
    os.link(root / "backup.lock", run.lock_file)
os.kill(supervisor, signal.SIGKILL)
os.waitpid(supervisor, 0)
deadline = time.monotonic() + 5
while not has_ended(command) and time.monotonic() < deadline:
    time.sleep(0.02)
time.sleep(0.5)
job_sleeps = subprocess.run(["pgrep", "-P", str(job.pid)], stdout=-1).stdout
print("job", "ended" if job.poll() is not None or not job_sleeps else "runs")
print("command", "ended" if has_ended(command) else "runs")
"""


@pytest.mark.usefixtures("as_root")
@pytest.mark.processes
@pytest.mark.parametrize("lock", ["own", "replaced"])
def test_lifeline_ends_nothing_that_holds_another_lock(tmp_path: Path, lock: str) -> None:
    """A link to a job's lock in the place of the run's costs the job nothing.

    The command of the run ends by the lock that the supervisor has opened, wherever that is now.
    """
    in_container = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    words = (sys.executable, "-c", SCENE, str(tmp_path), lock)
    scene = subprocess.run([*in_container, *words], capture_output=True, text=True, timeout=60)
    if scene.returncode and "unshare failed" in scene.stderr:
        pytest.skip("no namespaces of processes here")
    assert scene.stdout.splitlines() == ["job runs", "command ended"], scene.stderr
