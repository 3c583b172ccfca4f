"""The states of a disk after a power loss, if the filesystem does only what fsync demands.

A file's bytes are durable once the file was synced; the entries of a directory (what was created
in it, renamed, removed) once that directory was synced. Of everything else any part may be there
and any part may be missing, in whatever order it was asked for. A rename from one directory into
another is one change until one of the two was synced: then the other half may still be missing.
"""

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

# Relative paths; None stands for a directory.
Tree = dict[str, bytes | None]


@dataclass(eq=False)
class File:
    """``data`` is what a process reads, ``durable`` what was synced."""

    data: bytes = b""
    durable: bytes = b""


@dataclass(eq=False)
class Directory:
    """``durable`` are the entries that were synced, ``pending`` the changes since, oldest first."""

    durable: "dict[str, File | Directory]" = field(default_factory=dict)
    pending: "list[Change]" = field(default_factory=list)

    def entries(self, changes: "Iterable[Change] | None" = None) -> "dict[str, File | Directory]":
        """The entries once ``changes`` were applied, by default all the pending ones."""
        merged: Change = dict(self.durable)
        for change in self.pending if changes is None else changes:
            merged |= change
        return {name: node for name, node in merged.items() if node is not None}


# Entries by name; None for one that goes.
Change = dict[str, File | Directory | None]


class LazyFilesystem:
    """A directory tree that was durable, and what happened to it since."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = _load(root)
        # The halves of each rename between directories: what goes from the one, comes to the other.
        self._halves: list[tuple[Directory, Change, Directory, Change]] = []

    def replay(self, log: Path) -> list[str]:
        """Repeat what a FailingDisk logged; returns the notes that are no operation."""
        notes = []
        for line in log.read_bytes().splitlines():
            name, *details = json.loads(line)
            if operation := getattr(self, f"_{name}", None):
                operation(*details)
            else:
                notes.append(name)
        return notes

    def after_loss(self) -> Iterator[Tree]:
        """Every distinct tree that the power loss may leave."""
        seen = set()
        directories = list(_directories(self._top))
        choices = [list(_subsets(directory.pending)) for directory in directories]
        for chosen in itertools.product(*choices):
            if not self._is_possible({id(change) for changes in chosen for change in changes}):
                continue
            entries = {
                id(directory): directory.entries(changes)
                for directory, changes in zip(directories, chosen, strict=True)
            }
            for share in (0.0, 0.5, 1.0):
                tree: Tree = {}
                _collect(self._top, PurePath(), entries, share, tree)
                key = tuple(sorted(tree.items(), key=lambda item: item[0]))
                if key not in seen:
                    seen.add(key)
                    yield tree

    def _is_possible(self, kept: set[int]) -> bool:
        return all(
            (id(gone) in kept) == (id(come) in kept)
            for old, gone, new, come in self._halves
            if any(gone is change for change in old.pending)
            and any(come is change for change in new.pending)
        )

    # --- the operations of Disk --------------------------------------------------------------

    def _make_directory(self, path: str) -> None:
        self._change(path, Directory())

    def _create(self, path: str) -> None:
        self._change(path, File())

    def _write(self, path: str, data: str) -> None:
        file = self._find(path)
        assert isinstance(file, File)
        file.data += bytes.fromhex(data)

    def _sync(self, path: str) -> None:
        file = self._find(path)
        assert isinstance(file, File)
        file.durable = file.data

    def _sync_directory(self, path: str) -> None:
        directory = self._find(path)
        assert isinstance(directory, Directory)
        directory.durable, directory.pending = directory.entries(), []

    def _rename(self, source: str, target: str) -> None:
        node = self._find(source)
        old, new = self._parent(source), self._parent(target)
        if old is new:
            # One atomic change, which reaches the disk as a whole or not at all.
            old.pending.append({PurePath(source).name: None, PurePath(target).name: node})
        else:
            gone: Change = {PurePath(source).name: None}
            come: Change = {PurePath(target).name: node}
            old.pending.append(gone)
            new.pending.append(come)
            self._halves.append((old, gone, new, come))

    def _remove(self, path: str) -> None:
        self._parent(path).pending.append({PurePath(path).name: None})

    def _change(self, path: str, node: File | Directory) -> None:
        self._parent(path).pending.append({PurePath(path).name: node})

    def _parent(self, path: str) -> Directory:
        parent = str(PurePath(path).parent)
        try:
            node = self._find(parent)
        except KeyError:
            # Made without the disk's knowledge, so that it cannot have been synced.
            node = Directory()
            self._change(parent, node)
        assert isinstance(node, Directory)
        return node

    def _find(self, path: str) -> File | Directory:
        node: File | Directory = self._top
        for part in PurePath(path).relative_to(self._root).parts:
            assert isinstance(node, Directory)
            node = node.entries()[part]
        return node


def write_tree(tree: Tree, root: Path) -> None:
    """Make ``root`` hold exactly this."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, data in tree.items():
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)


def _load(root: Path) -> Directory:
    entries: dict[str, File | Directory] = {}
    for path in root.iterdir():
        if path.is_dir():
            entries[path.name] = _load(path)
        else:
            data = path.read_bytes()
            entries[path.name] = File(data, data)
    return Directory(entries)


def _directories(top: Directory) -> Iterator[Directory]:
    """Every directory that some choice of changes may make visible, once."""
    waiting, seen = [top], {id(top)}
    while waiting:
        directory = waiting.pop()
        yield directory
        nodes = [*directory.durable.values(), *(n for c in directory.pending for n in c.values())]
        for node in nodes:
            if isinstance(node, Directory) and id(node) not in seen:
                seen.add(id(node))
                waiting.append(node)


def _subsets(
    changes: list[Change],
) -> Iterator[tuple[Change, ...]]:
    for size in range(len(changes) + 1):
        yield from itertools.combinations(changes, size)


def _collect(
    directory: Directory,
    parent: PurePath,
    entries: dict[int, dict[str, File | Directory]],
    share: float,
    tree: Tree,
) -> None:
    for name, node in entries[id(directory)].items():
        path = parent / name
        if isinstance(node, Directory):
            tree[str(path)] = None
            _collect(node, path, entries, share, tree)
        elif node.data == node.durable:
            tree[str(path)] = node.data
        else:
            kept = len(node.durable) + int((len(node.data) - len(node.durable)) * share)
            tree[str(path)] = node.data[:kept]
