"""Unprivileged users of this machine, as whom tests run commands."""

import contextlib
import importlib
import os
import pkgutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import orchestrator
from orchestrator.cli import parser
from tests.support import in_child

GROUP = 54320

# Loaded while this process may still read the interpreter's files.
for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
    if not module.name.startswith(("orchestrator.training", "orchestrator.integrations")):
        with contextlib.suppress(ImportError, SystemExit):
            importlib.import_module(module.name)


@dataclass(frozen=True)
class User:
    """An account of this machine by its numbers; it is a member of GROUP too."""

    number: int
    umask: int = 0o022

    def run(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line as this user.

        It runs in a fork, since other users may not be able to read this interpreter's files.
        """
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as error:

            def main() -> None:
                self.become()
                os.chdir(cwd)
                for file, target in ((output, 1), (error, 2)):
                    os.dup2(file.fileno(), target)
                sys.stdout = os.fdopen(1, "w", closefd=False)
                sys.stderr = os.fdopen(2, "w", closefd=False)
                os.environ["ORCHESTRATOR_SPARE"] = "off"
                sys.argv = ["orchestrator", *words]
                try:
                    parser.main()
                except SystemExit as ending:
                    (sys.stdout.flush(), sys.stderr.flush())
                    os._exit(int(ending.code or 0))

            status = in_child(main)
            output.seek(0)
            error.seek(0)
            return subprocess.CompletedProcess(words, status, output.read(), error.read())

    def become(self) -> None:
        """Become this user for good, in a child process."""
        os.setgroups([GROUP])
        os.setgid(self.number)
        os.setuid(self.number)
        os.umask(self.umask)


VICTIM, OTHER = User(54321, umask=0o002), User(54322, umask=0o002)
