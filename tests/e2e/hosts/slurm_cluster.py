"""A real SLURM of one node on this machine, without systemd: munged, slurmctld, slurmd.

The node pretends to have many processors, so that jobs which mostly wait run side by side.
"""

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from orchestrator.hosts.slurm.scontrol import TIME_FORMAT
from tests.e2e.support import wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "shellcheck")
# Daemons are in sbin, which may be missing in the PATH.
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROCESSORS = 256
START_SECONDS = 30.0
END_SECONDS = 10.0

CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credential has expired; SLURM refuses a value below 5.
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/controller
SlurmdSpoolDir={root}/node
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldDebug=debug
SlurmdDebug=debug
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait={kill_wait}
MinJobAge=3600
# The exit statuses that ask for another run, as an operator may set it.
RequeueExit=74,75
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
NodeName=node NodeAddr=127.0.0.1 NodeHostname={host} Port={node_port} CPUs={cpus}
PartitionName=main Nodes=node Default=YES PriorityTier=5 PreemptMode=OFF
PartitionName=preemptible Nodes=node PriorityTier=1 GraceTime={grace_time} PreemptMode=REQUEUE
PartitionName=urgent Nodes=node PriorityTier=10 PreemptMode=OFF
"""
KILL_WAIT_SECONDS = 20
GRACE_TIME_SECONDS = 20


def why_unavailable() -> str | None:
    """Return why no cluster can be started on this machine; None if one can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if missing:
        return f"needs SLURM: {', '.join(missing)} not found (apt-get: slurm-wlm munge shellcheck)"
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Cluster:
    """The daemons of a cluster, and the commands of a user.

    All test processes of a machine share one cluster. The first process starts it and calls
    ``prepare``, whose result all processes get. The last process stops it.
    """

    def __init__(self, root: Path, prepare: Callable[["Cluster"], dict[str, Any]]) -> None:
        self.root = root
        self._prepare = prepare
        self._daemons: list[int] = []
        self.environment = {"SLURM_CONF": str(root / "slurm.conf"), "PATH": PATH}
        self.prepared: dict[str, Any] = {}

    def join(self) -> None:
        """Use the cluster until ``leave``; the first process starts it."""
        with self._shared() as shared:
            if shared["users"] == 0:
                try:
                    self._start()
                    shared |= {"daemons": self._daemons, "prepared": self._prepare(self)}
                except BaseException:
                    self._stop()
                    raise
            shared["users"] += 1
            self._daemons, self.prepared = shared["daemons"], shared["prepared"]

    def leave(self) -> None:
        """Stop using the cluster; the last process stops it."""
        with self._shared() as shared:
            shared["users"] -= 1
            if shared["users"] == 0:
                self._stop()

    @contextlib.contextmanager
    def _shared(self) -> Iterator[dict[str, Any]]:
        self.root.mkdir(exist_ok=True)
        with (self.root / "shared.json").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            shared = json.loads(file.read() or '{"users": 0}')
            try:
                yield shared
            finally:
                file.truncate(0)
                file.write(json.dumps(shared))
                file.flush()

    def _start(self) -> None:
        """Start the daemons, and wait until the node is idle."""
        root = self.root
        for name in ("controller", "node"):
            (root / name).mkdir()
        root.chmod(0o755)
        key, munge = root / "munge.key", root / "munge.socket"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        (root / "slurm.conf").write_text(
            CONFIGURATION.format(
                root=root,
                host=socket.gethostname().partition(".")[0],
                user=pwd.getpwuid(os.geteuid()).pw_name,
                controller_port=free_port(),
                node_port=free_port(),
                cpus=PROCESSORS,
                kill_wait=KILL_WAIT_SECONDS,
                grace_time=GRACE_TIME_SECONDS,
            )
        )
        self._spawn(
            "munged",
            *("--foreground", "--force", f"--key-file={key}", f"--socket={munge}"),
            *(f"--pid-file={root}/munged.pid", f"--seed-file={root}/munge.seed"),
            f"--log-file={root}/munged.log",
        )
        self._wait_until(munge.exists, "munged")
        self._spawn("slurmctld", "-D")
        self._wait_until(lambda: "is UP" in self.ask("scontrol", "ping"), "slurmctld")
        self._spawn("slurmd", "-D", "-N", "node")
        self._wait_until(
            lambda: self.ask("sinfo", "-h", "-o", "%t", "-p", "main") == "idle", "a node"
        )

    def _spawn(self, program: str, *arguments: str) -> None:
        with (self.root / f"{program}.log").open("wb") as log:
            daemon = subprocess.Popen(
                [program, *arguments],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._daemons.append(daemon.pid)

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_for(condition, what, START_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        files = sorted(self.root.glob("*.log"))
        return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in files)

    def _stop(self) -> None:
        """End every job, then the daemons."""
        self.ask("scancel", "--user", pwd.getpwuid(os.geteuid()).pw_name)
        deadline = time.monotonic() + 2 * KILL_WAIT_SECONDS
        while self.ask("squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid in reversed(self._daemons):
            with contextlib.suppress(psutil.NoSuchProcess):
                daemon = psutil.Process(pid)
                daemon.terminate()
                with contextlib.suppress(psutil.TimeoutExpired):
                    daemon.wait(END_SECONDS)
                    continue
                daemon.kill()

    def ask(self, *words: str) -> str:
        """Return the output of a SLURM command; empty if it fails."""
        result = subprocess.run(
            words,
            env=os.environ | self.environment | TIME_FORMAT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return result.stdout.strip()

    def submit(self, directory: Path, environment: dict[str, str], *arguments: str) -> str:
        """Submit a batch script from a directory, and return the number of the job."""
        result = subprocess.run(
            [shutil.which("sbatch", path=PATH) or "sbatch", "--parsable", *arguments],
            cwd=directory,
            env=environment | {"SLURM_CONF": self.environment["SLURM_CONF"]},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def job(self, name: str) -> dict[str, str]:
        """Return the output of `scontrol show job` as a dict."""
        words = self.ask("scontrol", "--oneliner", "show", "job", name).split()
        return dict(word.split("=", 1) for word in words if "=" in word)
