"""Which program a command or this process runs: a script, a module, a notebook, code."""

import contextlib
import marshal
import os
import shutil
import stat
import sys
from pathlib import Path

from orchestrator.rundir.sources import short_digest

DIRECTORY_AT_IMPORT = Path.cwd()


def script_of(command: list[str]) -> str | None:
    """Return what names the run: the first word that is a file, else the module of ``-m``.

    A file after ``-m`` is more likely data for that module, unless the module starts it as a
    script.
    """
    position = position_of_program(command)
    if position is None or (position and command[position - 1] == "-c"):
        return None
    word = command[position]
    return word.rpartition(".")[2] if position and command[position - 1] == "-m" else word


def position_of_program(command: list[str]) -> int | None:
    """Return the index of the word that is the script, the module, or the code of ``-c``."""
    if _is_own_program(command[0]):
        return 0
    modules: list[int] = []
    for index, word in enumerate(command[1:], start=1):
        has_next = index + 1 < len(command)
        if word == "-m" and has_next:
            modules.append(index + 1)
            if _module_file(command[index + 1]) is not None:
                return index + 1
        elif word == "-c" and has_next and not modules:
            return index + 1
        elif (
            (not modules or word.endswith(".py"))
            and os.path.isfile(word)
            and not Path(word).name.startswith("python")
        ):
            return index
    return modules[0] if modules else None


def _is_own_program(program: str) -> bool:
    """Return whether a program is a script of the user's, not one that is installed."""
    path = Path(program)
    if "/" not in program or path.resolve().parent.name in ("bin", "sbin", "Scripts"):
        return False
    if path.parent.name in ("bin", "sbin", "Scripts"):
        return False
    with contextlib.suppress(OSError):
        # What PATH finds is installed, a shim of pyenv too, which is a shell script.
        found = shutil.which(path.name)
        if found is None or not path.samefile(found):
            with open(path, "rb") as file:
                return file.read(2) == b"#!"
    return False


def path_of_program(command: list[str], position: int | None) -> Path | None:
    """Return the resolved file of the script or module at this index; None where it is no file."""
    if position is None or (position and command[position - 1] == "-c"):
        return None
    if position and command[position - 1] == "-m":
        return _module_file(command[position])
    return existing_file(Path(command[position]))


def _module_file(module: str) -> Path | None:
    """Return the file of a module below the working directory or PYTHONPATH."""
    below = Path(*module.split("."))
    roots = [".", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    for root in map(Path, roots):
        for path in (root / below / "__main__.py", root / below.with_name(f"{below.name}.py")):
            if os.path.isfile(path):
                return path.resolve()
    return None


def existing_file(path: Path) -> Path | None:
    """Return the resolved path of a file that exists; None for any other path."""
    return path.resolve() if os.path.isfile(path) else None


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules and "ipykernel" in Path(sys.argv[0]).as_posix()


def has_changed_directory() -> bool:
    """Return whether the script has left the directory in which it imported this package."""
    return Path.cwd() != DIRECTORY_AT_IMPORT


def file_at_input() -> Path | None:
    """Return the file that standard input was redirected from."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(0).st_mode):
            return existing_file(Path("/proc/self/fd/0").readlink())
    return None


def code_from_input() -> str | None:
    """Return an entry for the program on standard input, which this call is a part of."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    code = frame.f_code
    is_whole = code.co_filename == "<stdin>" and not os.isatty(0)
    return f"- {short_digest(marshal.dumps(code))}" if is_whole else None


def notebook_path() -> Path | None:
    """Return the notebook of this kernel, if the program that shows it has told its path."""
    main = vars(sys.modules["__main__"])
    name = main.get("__vsc_ipynb_file__") or os.environ.get("JPY_SESSION_NAME")
    return None if not name else (DIRECTORY_AT_IMPORT / str(name)).resolve()
