"""Reads the table of programs, programs.toml."""

import shlex
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE / "programs.toml"


@dataclass(frozen=True)
class Program:
    """A program, the command that trains for about a minute, and what adopt mode promises for it.

    ``command`` and ``prepare`` are words in which ``{python}``, ``{here}`` and ``{checkout}`` are
    replaced. ``progress`` is a regular expression with one group, a count of the program's own
    ``unit``; with three groups they are an epoch, a batch in it, and the batches of an epoch.
    ``saves_at_all`` is false for a program that saves nothing before its end. ``message`` is a part
    of what the supervisor must say. ``resumed`` is a part of what the program prints on a resume;
    it is needed where the counts may begin anew all the same.
    """

    name: str
    source: str
    command: str
    adopt: tuple[str, ...]
    progress: str
    unit: str
    promise: str
    resume_arg: str = ""
    checkout: str = ""
    directory: str = "."
    prepare: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    options: str = ""
    environment: Mapping[str, str] | None = None
    saves_at_all: bool = True
    resumes: bool = True
    message: str = ""
    resumed: str = ""

    def words(self, text: str, python: str, checkouts: Path) -> list[str]:
        """Return the words of a command, with its places filled in."""
        places = {"python": python, "here": HERE, "checkout": checkouts / self.checkout}
        return [word.format(**places) for word in shlex.split(text)]

    @property
    def adopt_options(self) -> list[str]:
        """The options of ``orchestrator run`` that this program needs."""
        words = [word for pattern in self.adopt for word in ("--adopt", pattern)]
        if self.resume_arg:
            words += ["--resume-arg", self.resume_arg]
        return [*words, *shlex.split(self.options)]

    def missing(self, python: str, checkouts: Path) -> str | None:
        """Return what is not there and must be for a trial, in words; None if nothing is."""
        if self.checkout and not (checkouts / self.checkout / self.directory).is_dir():
            return f"a checkout of {self.source} in {self.checkout}/"
        absent = [name for name in self.needs if not version_of(python, name)]
        return f"pip install {' '.join(absent)}" if absent else None

    def revision(self, python: str, checkouts: Path) -> str:
        """Return the commit of the checkout, or the versions of what was installed instead."""
        if self.checkout:
            marker = checkouts / f"{self.checkout}.revision"
            if marker.exists():
                return marker.read_text().strip()
            git = ["git", "-C", str(checkouts / self.checkout), "log", "-1", "--format=%h, %cs"]
            found = subprocess.run(git, capture_output=True, text=True, check=False)
            return found.stdout.strip() or "unknown"
        return ", ".join(f"{name} {version_of(python, name)}" for name in self.needs)


def version_of(python: str, distribution: str) -> str:
    """Return the version of a distribution in another environment, empty if it is not there."""
    code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    words = [python, "-c", code, distribution]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def load(table: Path = TABLE) -> list[Program]:
    """Return the programs of a table. Raises TypeError for an entry that is not one."""
    entries = tomllib.loads(table.read_text())["program"]
    lists = ("adopt", "prepare", "needs")
    return [
        Program(**{key: tuple(value) if key in lists else value for key, value in entry.items()})
        for entry in entries
    ]
