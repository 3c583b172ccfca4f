"""Units for systemd: one for a command, and the template that reads its command from a file.

Both are made from one text, so that what holds for the one holds for the other. Why each line is
there is said in the unit, where an administrator reads it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.systemd.quoting import command, literal, word, words
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir

# Beyond the grace period: ending the processes, writing what was in memory.
MARGIN_SECONDS = 15
# When everything stops, a disk is slower than it was.
SAVE_ALLOWANCE = 3.0
RECENT_SAVES = 20
TEMPLATE_GRACE_SECONDS = 60

_IN_VAIN = (
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
class Service:
    """A command as a service. ``program`` starts the orchestrator, and is absolute, as is all."""

    name: str
    program: Sequence[str]
    options: Sequence[str]
    command: Sequence[str]
    directory: Path
    run_dir: Path | None
    """None leaves it to systemd: a StateDirectory."""
    account: str | None
    for_user: bool
    grace_seconds: float
    save_seconds: float | None
    """How long a save of this run was seen to take."""


def check_name(name: str) -> str:
    """The name, if it can be that of a unit and of a directory. Raises ConfigError."""
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise ConfigError(
            f"cannot name a unit {name!r}: use letters, digits and _.- and give it with --name"
        )
    return name


def slowest_save(run: RunDir) -> float | None:
    """Seconds that the slowest of the last saves took; None where nothing was measured."""
    events, _ = Journal(run.journal_file).read()
    published = [e for e in events if e["event"] == JournalEvent.CHECKPOINT_PUBLISHED]
    seconds = [e.get("seconds") for e in published[-RECENT_SAVES:]]
    return max((s for s in seconds if isinstance(s, int | float)), default=None)


def stop_seconds(grace_seconds: float, save_seconds: float | None) -> int:
    """TimeoutStopSec for a grace period and the measured time of a save."""
    return math.ceil(grace_seconds + max(MARGIN_SECONDS, SAVE_ALLOWANCE * (save_seconds or 0.0)))


def service_unit(service: Service) -> str:
    """The unit of one command."""
    run_dir = service.run_dir
    setting = [f"User={service.account}"] if service.account else []
    setting.append(f"WorkingDirectory={literal(str(service.directory))}")
    setting += _setting_of(run_dir, service.name)
    # Where the program comes from a virtual environment, its neighbours are to be found too.
    beside = str(Path(service.command[0]).parent)
    if beside not in _USUAL_PATH.split(":"):
        setting.append(f"Environment={word(f'PATH={beside}:{_USUAL_PATH}')}")
    needed = [str(service.directory), *([str(run_dir)] if run_dir else [])]
    grace, save = service.grace_seconds, service.save_seconds
    saving = f"of a save, which took up to {save:.1f} s" if save else "of what is in memory"
    return _render(
        service.for_user,
        heading=_HEADING.format(
            name=service.name,
            place=_USER_UNITS if service.for_user else _SYSTEM_UNITS,
            systemctl="systemctl --user" if service.for_user else "systemctl",
        ),
        description=f"Training run {service.name}",
        order="" if service.for_user else _ORDER + f"RequiresMountsFor={words(needed)}\n",
        setting=setting,
        start=command([*service.program, "run", *service.options, "--", *service.command]),
        save=command([*service.program, "checkpoint"]),
        stop_seconds=stop_seconds(grace, save),
        stop_reason=f"A grace period of {grace:g} s, and time for the writing {saving}.",
    )


def template(for_user: bool) -> str:
    """orchestrator@.service: its instance NAME runs the command in orchestrator/NAME.env."""
    return _render(
        for_user,
        heading=_TEMPLATE_HEADING_FOR_USER if for_user else _TEMPLATE_HEADING,
        description="Training run %i",
        order="" if for_user else _ORDER,
        setting=[
            "WorkingDirectory=~",
            f"Environment=ORCHESTRATOR_GRACE={TEMPLATE_GRACE_SECONDS}s",
            *_setting_of(None, "%i"),
            "EnvironmentFile=%E/orchestrator/%i.env",
        ],
        start=command([*_SHELL, 'cd "$DIRECTORY" && eval "exec orchestrator run -- $COMMAND"']),
        save=command([*_SHELL, "exec orchestrator checkpoint"]),
        stop_seconds=stop_seconds(TEMPLATE_GRACE_SECONDS, None),
        stop_reason="Longer than ORCHESTRATOR_GRACE: change both or none.",
    )


def _setting_of(run_dir: Path | None, name: str) -> list[str]:
    if run_dir is not None:
        return [f"Environment={word(f'ORCHESTRATOR_RUN_DIR={run_dir}')}"]
    return [
        f"StateDirectory=orchestrator/{name}",
        f"Environment=ORCHESTRATOR_RUN_DIR=%S/orchestrator/{name}",
    ]


def _render(for_user: bool, heading: str, setting: Sequence[str], **parts: object) -> str:
    return _UNIT.format(
        heading="".join(f"# {line}".rstrip() + "\n" for line in heading.splitlines()),
        setting="\n".join(setting),
        stopped=" ".join(str(int(status)) for status in _STOPPED),
        in_vain=" ".join(str(int(status)) for status in _IN_VAIN),
        sandbox=_SANDBOX if for_user else _SANDBOX + _SANDBOX_OF_SYSTEM,
        target="default.target" if for_user else "multi-user.target",
        **parts,
    )


_HEADING = """\
{place}/{name}.service, as `orchestrator systemd-unit` printed it. Put it there, then:
  {systemctl} daemon-reload
  {systemctl} enable --now {name}    (now, and at each start of the machine)
  {systemctl} status {name}          (how far it is)
  {systemctl} reload {name}          (save now, train on)
  {systemctl} stop {name}            (save, stop)"""

_TEMPLATE_HEADING = """\
/etc/systemd/system/orchestrator@.service: a service for each file /etc/orchestrator/NAME.env, as
  DIRECTORY=/home/me/project
  COMMAND=python train.py --epochs 100
  PATH=/home/me/project/.venv/bin:/usr/local/bin:/usr/bin:/bin
COMMAND is read by a shell, and `orchestrator` looked for in PATH. Say as whom, then start it:
  systemctl edit orchestrator@NAME            ([Service] and User=me, in two lines)
  systemctl enable --now orchestrator@NAME
`orchestrator systemd-unit -- COMMAND` prints a unit for one command, with all of it filled in."""

_TEMPLATE_HEADING_FOR_USER = """\
~/.config/systemd/user/orchestrator@.service: a service for each ~/.config/orchestrator/NAME.env, as
  DIRECTORY=/home/me/project
  COMMAND=python train.py --epochs 100
  PATH=/home/me/project/.venv/bin:/usr/local/bin:/usr/bin:/bin
COMMAND is read by a shell, and `orchestrator` looked for in PATH. Then:
  systemctl --user enable --now orchestrator@NAME
  loginctl enable-linger                      (else it saves and stops when you log out)
`orchestrator systemd-unit --user -- COMMAND` prints a unit for one command, all of it filled in."""

_ORDER = """\
Wants=network-online.target
After=network-online.target
"""

_UNIT = """\
{heading}
[Unit]
Description={description}
{order}# The supervisor restarts its trainer itself. What systemd restarts is the supervisor, and of
# that five deaths within ten minutes are a problem that more starts will not solve.
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
Type=notify
{setting}
ExecStart={start}
# Save now, or fail; training goes on.
ExecReload={save}
# How long it takes to verify a large checkpoint is for nobody to guess.
TimeoutStartSec=infinity

# The supervisor alone is told to stop, and asks the trainer to save. A signal to every process
# would end the loader workers, and with them the save.
KillMode=mixed
KillSignal=SIGTERM
# {stop_reason}
# A save that still gets on when it is over is given more, as long as it does.
TimeoutStopSec={stop_seconds}
# What kills the supervisor kills its trainer too. The newest snapshot is kept for the next start.
FileDescriptorStoreMax=8
# No sign of health for so long: its loop does not turn, or one of its threads is stuck.
WatchdogSec=180

Restart=on-failure
RestartSec=10
# Stopped on request (74: the last steps are not saved): no failure; the next boot starts it again.
SuccessExitStatus={stopped}
# Misuse, no valid checkpoint, in use, given up, configuration: another start would end alike.
RestartPreventExitStatus={in_vain}
# When the kernel ends a loader worker, the trainer or the spare for lack of memory, the supervisor
# goes on; by default systemd would stop it for that.
OOMPolicy=continue
{sandbox}
[Install]
WantedBy={target}
"""

_SANDBOX = """
# What training never needs. Take out what yours needs: a command that starts containers, for one,
# needs RestrictNamespaces=no, and SystemCallFilter= without a value.
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
# Open on purpose:
# - MemoryDenyWriteExecute: torch.compile, Triton and CUDA make code at run time.
# - PrivateDevices, DevicePolicy, PrivateUsers: GPUs, and the groups that may use them.
# - PrivateNetwork, IPAddressDeny: data sets, experiment trackers, NCCL.
# - ProtectSystem=strict, ProtectHome, UMask: scripts write where they like, for others to read.
# - PrivateTmp: compile caches survive a restart, and `orchestrator status` has its socket there.
# - ProcSubset: torch reads /proc/cpuinfo.
"""
