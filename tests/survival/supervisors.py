"""Kills supervisors from the first millisecond on, and starts the same command again at once.

    python -m tests.survival.supervisors [--only NAME]... [--kills N] [--seed 1]

No command may end with another status than 0, 74 and 75. The results must equal those of an
undisturbed run, and no process and no file may be left.
"""

import argparse
import itertools
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from orchestrator.system import process_tree
from tests.e2e.supervisor_kills import KilledRun, Phase, Subject
from tests.e2e.support import (
    TRAIN,
    forked_by,
    forking_server,
    orchestrator,
    wait_for,
)

ADOPTED = Path(__file__).parent.parent / "adopt" / "scripts"
KILLS_PER_RUN = 25
# Every other run's path is too long for a socket, which is then in a temporary directory.
LONG = 100
TRAINING = (
    *("--epochs", "24", "--step-seconds", "0.02"),
    *("--ballast", "2000000", "--result", "result.pt"),
)
LAST_WORDS = "epoch 23 done"
OPTIONS = ("--every", "3steps", "--keep", "2", "--grace", "5s", "--max-restarts", "100")
# It cannot run twice at a time without a trace.
COUNTER = """
exec 9> mutex; flock --nonblock 9 || touch two-at-once
n=$(cat count 2>/dev/null || echo 0)
while [ "$n" -lt 300 ]; do n=$((n + 1)); echo $n > new; mv new count; sleep 0.02; done
echo done; cp count result.pt; rm -f new
"""


def subjects(server: Path) -> dict[str, tuple[int, Subject]]:
    """Return the subjects by name, each with its number of kills."""
    train = [*forked_by(server), str(TRAIN), *TRAINING]
    plain = [*forked_by(server), str(ADOPTED / "plain.py"), "--steps", "300", "--pause", "0.03"]
    in_shell = f"{shlex.join([*plain, '--by-itself'])}; exit $?"
    session = Subject(train, LAST_WORDS, OPTIONS, cold_share=0.25)
    return {
        "session": (200, session),
        "with a spare": (
            30,
            Subject(
                [sys.executable, str(TRAIN), *TRAINING],
                LAST_WORDS,
                OPTIONS,
                environment={"ORCHESTRATOR_SPARE": "on"},
                cold_share=1.0,
            ),
        ),
        "detached": (30, Subject(train, LAST_WORDS, (*OPTIONS, "--detach"), cold_share=0.25)),
        "wrapper": (
            30,
            Subject(
                ["env", "X=1", "sh", "-c", '"$@"; exit $?', "sh", *train],
                LAST_WORDS,
                OPTIONS,
                cold_share=0.25,
            ),
        ),
        "command": (
            30,
            Subject(
                ["bash", "-c", COUNTER],
                "done",
                ("--grace", "5s"),
                has_session=False,
                cold_share=0.25,
            ),
        ),
        "adopted": (
            30,
            Subject(
                ["bash", "-c", in_shell],
                "no last words",
                ("--adopt", "out/last.pt", "--grace", "5s"),
                result="final.pt",
                has_session=False,
                cold_share=0.25,
            ),
        ),
    }


def kill(
    subject: Subject, count: int, root: Path, chance: random.Random, servers: list[int]
) -> Counter[Phase]:
    """Kill runs of a subject until there were enough kills, and return the phases they hit."""
    undisturbed = KilledRun(subject, root / "undisturbed", chance)
    undisturbed.kill(0)
    phases = Counter[Phase]()
    for number in itertools.count():
        if (left := count - phases.total()) <= 0:
            break
        name = f"run-{number}".ljust(LONG if number % 2 else 0, "-")
        run = KilledRun(subject, root / name, chance)
        try:
            run.kill(min(left, KILLS_PER_RUN))
            run.check(undisturbed)
            wait_for(lambda: not alive(servers), "the end of all processes", 20)
        finally:
            run.close()
        phases += run.phases
        print(f"{phases.total()} kills", file=sys.stderr, flush=True)
    undisturbed.close()
    return phases


def alive(servers: list[int]) -> list[int]:
    """Return the processes that were started for a run and are alive; orphans come to this one."""
    processes = map(process_tree.Process.read, process_tree.descendants(servers))
    return [process.pid for process in processes if process and not process.is_dead]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.survival.supervisors")
    names = tuple(subjects(Path()))
    parser.add_argument("--only", action="append", choices=names, metavar="NAME")
    parser.add_argument("--kills", type=int, help="instead of each subject's number")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    process_tree.become_subreaper()
    print(f"| command | kills | {' | '.join(Phase)} | minutes |")
    print(f"|---|---|{'---|' * len(Phase)}---|")
    with tempfile.TemporaryDirectory(prefix="survival-") as directory:
        server = Path(directory) / "server"
        with forking_server(server, PYTHONPATH=str(ADOPTED)):
            orchestrator("--version", cwd=Path(directory))  # starts the server of warm commands
            servers = process_tree.descendants()
            for name, (count, subject) in subjects(server).items():
                if not args.only or name in args.only:
                    root = Path(directory) / name.replace(" ", "-")
                    root.mkdir()
                    begun = time.monotonic()
                    chance = random.Random(args.seed)
                    phases = kill(subject, args.kills or count, root, chance, servers)
                    counts = " | ".join(str(phases[phase]) for phase in Phase)
                    minutes = (time.monotonic() - begun) / 60
                    row = f"| {name} | {phases.total()} | {counts} | {minutes:.1f} |"
                    print(row, flush=True)


if __name__ == "__main__":
    main()
