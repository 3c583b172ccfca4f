"""Unit files for systemd: for one command, and a template that reads its command from a file.

Both are made from one text, so that they agree. Comments in the unit explain its lines, since an
administrator reads them there.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.systemd.quoting import escape_value, quote_command, quote_word, quote_words
from orchestrator.rundir.history_index import read_history
from orchestrator.rundir.paths import RunDir

# Time beyond the grace period, to end the processes and to write the snapshot in memory.
MARGIN_SECONDS = 15
# A disk is slower while all services of a machine stop.
SAVE_ALLOWANCE = 3.0
TEMPLATE_GRACE_SECONDS = 60

_NO_RESTART = (
    ExitStatus.MISUSE,
    ExitStatus.NO_VALID_CHECKPOINT,
    ExitStatus.IN_USE,
    ExitStatus.GAVE_UP,
    ExitStatus.CONFIGURATION,
)
_STOPPED = (ExitStatus.STOPPED_UNSAVED, ExitStatus.STOPPED_SAVED)
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHELL = ("/bin/sh", "-c")
_SYSTEM_UNITS = "/etc/systemd/system"
_USER_UNITS = "~/.config/systemd/user"


@dataclass(frozen=True)
class ServiceSpec:
    """A training command as a service; ``program`` starts the orchestrator. Paths are absolute."""

    name: str
    program: Sequence[str]
    options: Sequence[str]
    command: Sequence[str]
    directory: Path
    run_dir: Path | None
    """The run directory; None means a StateDirectory of systemd."""
    account: str | None
    for_user: bool
    grace_seconds: float
    save_seconds: float | None
    """How long the slowest recent save of the run took; None if unknown."""


def check_unit_name(name: str) -> str:
    """Return the name if it is valid for a unit and for a directory. Raises ConfigError."""
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise ConfigError(
            f"cannot name a unit {name!r}: use letters, digits and _.- and give it with --name"
        )
    return name


def slowest_save(run: RunDir) -> float | None:
    """Return how many seconds the slowest of the last saves took; None without a save."""
    return max(read_history(run).save_seconds, default=None)


def stop_seconds(grace_seconds: float, save_seconds: float | None) -> int:
    """Return TimeoutStopSec for a grace period and the duration of a save."""
    return math.ceil(grace_seconds + max(MARGIN_SECONDS, SAVE_ALLOWANCE * (save_seconds or 0.0)))


def service_unit(service: ServiceSpec) -> str:
    """Return the unit file for one command."""
    run_dir = service.run_dir
    settings = [f"User={service.account}"] if service.account else []
    settings.append(f"WorkingDirectory={escape_value(str(service.directory))}")
    settings += _run_dir_settings(run_dir, service.name)
    # The other programs of a virtual environment must be on the PATH too.
    program_directory = str(Path(service.command[0]).parent)
    if program_directory not in _USUAL_PATH.split(":"):
        settings.append(f"Environment={quote_word(f'PATH={program_directory}:{_USUAL_PATH}')}")
    needed = [str(service.directory), *([str(run_dir)] if run_dir else [])]
    grace, save = service.grace_seconds, service.save_seconds
    saving = f"of a save, which took up to {save:.1f} s" if save else "of what is in memory"
    return _render(
        service.for_user,
        heading=_HEADING.format(
            name=service.name,
            unit_directory=_USER_UNITS if service.for_user else _SYSTEM_UNITS,
            systemctl="systemctl --user" if service.for_user else "systemctl",
        ),
        description=f"Training run {service.name}",
        order="" if service.for_user else _ORDER + f"RequiresMountsFor={quote_words(needed)}\n",
        settings=settings,
        start=quote_command([*service.program, "run", *service.options, "--", *service.command]),
        save=quote_command([*service.program, "checkpoint"]),
        stop_seconds=stop_seconds(grace, save),
        stop_reason=f"A grace period of {grace:g} s, and time for the writing {saving}.",
    )


def template_unit(for_user: bool) -> str:
    """Return orchestrator@.service, whose instance NAME reads its command from NAME.env."""
    return _render(
        for_user,
        heading=_TEMPLATE_HEADING_FOR_USER if for_user else _TEMPLATE_HEADING,
        description="Training run %i",
        order="" if for_user else _ORDER,
        settings=[
            "WorkingDirectory=~",
            f"Environment=ORCHESTRATOR_GRACE={TEMPLATE_GRACE_SECONDS}s",
            *_run_dir_settings(None, "%i"),
            "EnvironmentFile=%E/orchestrator/%i.env",
        ],
        start=quote_command(
            [*_SHELL, 'cd "$DIRECTORY" && eval "exec orchestrator run -- $COMMAND"']
        ),
        save=quote_command([*_SHELL, "exec orchestrator checkpoint"]),
        stop_seconds=stop_seconds(TEMPLATE_GRACE_SECONDS, None),
        stop_reason="Longer than ORCHESTRATOR_GRACE: change both or none.",
    )


def _run_dir_settings(run_dir: Path | None, name: str) -> list[str]:
    if run_dir is not None:
        return [f"Environment={quote_word(f'ORCHESTRATOR_RUN_DIR={run_dir}')}"]
    return [
        f"StateDirectory=orchestrator/{name}",
        f"Environment=ORCHESTRATOR_RUN_DIR=%S/orchestrator/{name}",
    ]


def _render(for_user: bool, heading: str, settings: Sequence[str], **parts: object) -> str:
    return _UNIT.format(
        heading="".join(f"# {line}".rstrip() + "\n" for line in heading.splitlines()),
        settings="\n".join(settings),
        stopped=" ".join(str(int(status)) for status in _STOPPED),
        no_restart=" ".join(str(int(status)) for status in _NO_RESTART),
        sandbox=_SANDBOX if for_user else _SANDBOX + _SANDBOX_OF_SYSTEM,
        target="default.target" if for_user else "multi-user.target",
        **parts,
    )


_HEADING = """\
{unit_directory}/{name}.service, from `orchestrator systemd-unit`. Put the file there, then:
  {systemctl} daemon-reload
  {systemctl} enable --now {name}    (start it now and at each boot)
  {systemctl} status {name}          (show its progress)
  {systemctl} reload {name}          (save now and continue)
  {systemctl} stop {name}            (save and stop)"""

_TEMPLATE_HEADING = """\
/etc/systemd/system/orchestrator@.service: a service for each file /etc/orchestrator/NAME.env, as
  DIRECTORY=/home/me/project
  COMMAND=python train.py --epochs 100
  PATH=/home/me/project/.venv/bin:/usr/local/bin:/usr/bin:/bin
A shell reads COMMAND, and finds `orchestrator` in PATH. Set the user, then start the service:
  systemctl edit orchestrator@NAME            ([Service] and User=me, in two lines)
  systemctl enable --now orchestrator@NAME
`orchestrator systemd-unit -- COMMAND` prints a complete unit for one command."""

_TEMPLATE_HEADING_FOR_USER = """\
~/.config/systemd/user/orchestrator@.service: a service for each ~/.config/orchestrator/NAME.env, as
  DIRECTORY=/home/me/project
  COMMAND=python train.py --epochs 100
  PATH=/home/me/project/.venv/bin:/usr/local/bin:/usr/bin:/bin
A shell reads COMMAND, and finds `orchestrator` in PATH. Then:
  systemctl --user enable --now orchestrator@NAME
  loginctl enable-linger                      (otherwise it saves and stops when you log out)
`orchestrator systemd-unit --user -- COMMAND` prints a complete unit for one command."""

_ORDER = """\
Wants=network-online.target
After=network-online.target
"""

_UNIT = """\
{heading}
[Unit]
Description={description}
{order}# The supervisor restarts its trainer; systemd restarts the supervisor. After five failures
# of the supervisor within ten minutes another start would not help.
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
Type=notify
{settings}
ExecStart={start}
# Save now, or fail; the training continues.
ExecReload={save}
# The time to verify a large checkpoint cannot be predicted.
TimeoutStartSec=infinity

# Only the supervisor gets the stop signal, and asks the trainer to save. A signal to every process
# would end the loader workers, and the save with them.
KillMode=mixed
KillSignal=SIGTERM
# {stop_reason}
# A save that makes progress at the end of this time gets more time, while it makes progress.
TimeoutStopSec={stop_seconds}
# When the supervisor is killed, systemd ends its trainer too. For the next start systemd keeps the
# newest snapshot, which is in memory, in its file descriptor store.
FileDescriptorStoreMax=8
# After this time without a ping, the supervisor's event loop or one of its threads is stuck.
WatchdogSec=180

Restart=on-failure
RestartSec=10
# A stop on request is no failure (74: the last steps are not saved); the next boot starts it again.
SuccessExitStatus={stopped}
# Misuse, no valid checkpoint, in use, given up, configuration: another start would not help.
RestartPreventExitStatus={no_restart}
# After the OOM kill of a loader worker, the trainer or the spare, the supervisor continues. By
# default systemd would stop it.
OOMPolicy=continue
{sandbox}
[Install]
WantedBy={target}
"""

_SANDBOX = """
# Restrictions that most trainings do not notice. Remove those that yours cannot bear: a command
# that starts containers needs RestrictNamespaces=no and SystemCallFilter= without a value.
NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""

_SANDBOX_OF_SYSTEM = """\
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=full
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RemoveIPC=yes
# Not restricted on purpose:
# - MemoryDenyWriteExecute: torch.compile, Triton and CUDA make code at run time.
# - PrivateDevices, DevicePolicy, PrivateUsers: GPUs, and the groups that may use them.
# - PrivateNetwork, IPAddressDeny: data sets, experiment trackers, NCCL.
# - ProtectSystem=strict, ProtectHome, UMask: scripts write anywhere, also for other users.
# - PrivateTmp: compile caches survive a restart; sockets of runs with long paths are there.
# - ProcSubset: torch reads /proc/cpuinfo.
"""
