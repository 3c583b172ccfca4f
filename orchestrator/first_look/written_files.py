"""Watches the files that a script writes, and keeps every version that has come to rest."""

import os
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.adopt.files import FileState, state_of
from orchestrator.first_look.weights import Likeness, likeness
from orchestrator.rundir.ownership import owner_of_new_files
from orchestrator.rundir.paths import RunDir

# A data set may have millions of names.
MOST_NAMES = 20_000
# Looking takes this share of the time.
LOOKING_SHARE = 0.05
# The times of files may lag behind the clock by this much.
FILE_CLOCK_NS = 20_000_000
# The parents of a file that is open outside the watched directories, while their names have digits.
MOST_PARENTS = 3
_NO_SAVES = {"__pycache__", "node_modules", "site-packages", "wandb", "mlruns"}
_SHARED = {Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/dev"), Path("/")}


@dataclass
class WrittenFile:
    """A file that was written during the look, and its versions at rest, oldest first."""

    path: Path
    likeness: Likeness
    versions: list[FileState] = field(default_factory=list)


class FileWatch:
    """Watches the files below some directories; links to directories count only at the top.

    What another user writes there is not the script's.
    """

    def __init__(self, directories: Iterable[Path], most_names: int = MOST_NAMES) -> None:
        self.written: dict[Path, WrittenFile] = {}
        """The files that were written and may hold weights."""
        self.was_cut_off = False
        """Whether there were more names than are watched."""
        self.session_run: Path | None = None
        """The run directory of a session that the script has opened."""
        self.seconds_for_look = 0.0
        self._since_ns = time.time_ns() - FILE_CLOCK_NS
        self._roots = [path.absolute() for path in directories]
        self._most_names = most_names
        # A script may run commands as root, in containers for example.
        self._users = {os.geteuid(), 0, owner_of_new_files(Path.cwd())}
        self._seen: dict[Path, FileState] = {}
        self.before = dict(self._files())
        """The files that were there before."""

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next look."""
        return self.seconds_for_look / LOOKING_SHARE

    def look(self, open_files: Collection[Path]) -> bool:
        """Look at all files; ``open_files`` are those that the script has open for writing.

        Return whether a version has come to rest. A file has come to rest when two looks find it
        unchanged, and it is not open.
        """
        began = time.monotonic()
        self._follow(open_files)
        has_news = False
        for path, state in self._files():
            if state.modified_ns < self._since_ns or self.before.get(path) == state:
                continue
            is_at_rest = self._seen.get(path) == state and path not in open_files
            self._seen[path] = state
            if is_at_rest and state.bytes and self._record(path, state):
                has_news = True
        self.seconds_for_look = time.monotonic() - began
        return has_news

    def _record(self, path: Path, state: FileState) -> bool:
        file = self.written.get(path)
        if file is None:
            file = WrittenFile(path, likeness(path))
            if file.likeness is Likeness.NONE:
                return False
            self.written[path] = file
        if file.versions and file.versions[-1] == state:
            return False
        file.versions.append(state)
        return True

    def _follow(self, open_files: Collection[Path]) -> None:
        """Watch, before all others, unwatched directories in which a file of weights is open."""
        for path in open_files:
            is_watched = any(map(path.is_relative_to, self._roots)) and not self.was_cut_off
            if is_watched or likeness(path) is Likeness.NONE:
                continue
            directory = path.parent
            for _ in range(MOST_PARENTS):
                if not any(map(str.isdigit, directory.name)):
                    break
                directory = directory.parent
            temporary = {*_SHARED, Path(tempfile.gettempdir())}
            if directory not in temporary and directory not in self._roots:
                self._roots.insert(0, directory)

    def _files(self) -> Iterator[tuple[Path, FileState]]:
        """Yield the files and their states, those in few levels first, linked directories last."""
        waiting = deque((root, True) for root in self._roots)
        visited: set[str] = set()
        names = 0
        while waiting:
            directory, is_top = waiting.popleft()
            real = os.path.realpath(directory) if is_top else str(directory)
            if real in visited:
                continue
            visited.add(real)
            links = []
            for entry in _entries(directory):
                if (names := names + 1) > self._most_names:
                    self.was_cut_off = True
                    return
                if entry.is_dir(follow_symlinks=False):
                    if self._may_have_saves(entry):
                        waiting.append((Path(entry.path), False))
                elif is_top and entry.is_symlink() and entry.is_dir():
                    links.append((Path(entry.path), True))
                elif entry.is_file(follow_symlinks=False):
                    try:
                        facts = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if facts.st_uid in self._users:
                        yield Path(entry.path), state_of(facts)
            waiting.extend(links)

    def _may_have_saves(self, entry: "os.DirEntry[str]") -> bool:
        if entry.name.startswith(".") or entry.name in _NO_SAVES:
            return False
        if os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
            return False
        run_file = RunDir(Path(entry.path)).run_file
        try:
            facts = run_file.lstat()
        except OSError:
            return True
        if facts.st_mtime_ns >= self._since_ns and facts.st_uid in self._users:
            self.session_run = Path(entry.path)
        return False


def _entries(directory: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def named_directories(command: Iterable[str]) -> list[Path]:
    """Return the directories outside the working directory that a command's words name."""
    here = Path.cwd()
    found = []
    for word in command:
        text = word.partition("=")[2] or word
        path = Path(os.path.normpath(here / text)) if text.startswith(("/", "..")) else here
        if not path.is_relative_to(here) and not os.path.isfile(path) and path not in _SHARED:
            found.append(path)
    return found
