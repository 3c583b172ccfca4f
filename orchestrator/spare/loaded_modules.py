"""The modules and the environment of a trainer, which decide what a spare imports."""

import contextlib
import os
import site
import sys
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path

from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    RANK_VARIABLE,
    RESUME_PATHS_VARIABLE,
    RESUME_VARIABLE,
)
from orchestrator.rundir.paths import run_root_above
from orchestrator.spare.spare_process import environment_digest
from orchestrator.system.durable import write_json
from orchestrator.telemetry.trackers import MLFLOW_VARIABLE

# This many modules more than in the last report make another report worthwhile.
GROWTH = 50
# This package counts as third-party even if it is an editable installation.
_THIS_PACKAGE = __name__.partition(".")[0]
# torch generates modules in a temporary folder of each process and imports them from there.
# torch 2.7 to 2.9 do so at the first step of an optimizer.
_GENERATOR = "torch.distributed.nn.jit.instantiator"
_GENERATED_FOLDER = "INSTANTIATED_TEMPLATE_DIR_PATH"
_FIRST_ENVIRONMENT = Path("/proc/self/environ")
# Variables of the attempt, and variables that torch and Lightning set and read during use, not
# during their import.
_IGNORED_VARIABLES = {
    *(ATTEMPT_VARIABLE, RESUME_VARIABLE, RESUME_PATHS_VARIABLE, MLFLOW_VARIABLE, RANK_VARIABLE),
    *("CUDA_MODULE_LOADING", "DISABLE_CUPTI_LAZY_REINIT", "TEARDOWN_CUPTI"),
    *("RANK", "LOCAL_RANK", "ROLE_RANK", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"),
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
}


class ModuleReport:
    """Writes the list of modules for the spare, again when it has grown, in a thread."""

    def __init__(self, file: Path, on_written: Callable[[], None]) -> None:
        """Call ``on_written`` in the thread after the file has been written."""
        self._file = file
        self._on_written = on_written
        self._next_count: int | None = None

    def write_if_due(self) -> None:
        """Write the list if it is new or has grown.

        The first call, at the first safe point, writes nothing: the loop imports more modules.
        """
        count = len(sys.modules)
        if self._next_count is None:
            self._next_count = 0
        elif count >= self._next_count:
            self._next_count = count + GROWTH
            threading.Thread(target=self._write, name="modules", daemon=True).start()

    def _write(self) -> None:
        # Without the list, for example on a full disk, there is no spare; training continues.
        with contextlib.suppress(OSError):
            content = {**loaded_modules(), "environment": changed_environment()}
            write_json(self._file, content, below=run_root_above(self._file))
            self._on_written()


def loaded_modules() -> dict[str, list[str]]:
    """Return the names of ``third_party`` modules and of the script's ``own`` modules.

    Third-party modules are in the interpreter's library or in site-packages; all others are own.
    Modules that torch generates at run time are left out.
    The names are in the order in which their imports ended: if one module changes another, an
    import in this order has the same effects.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    # The module of -m must not be imported in advance: runpy would print a warning.
    excluded = {"__main__", "__mp_main__", spec and spec.name}
    roots = _library_roots()
    generated = getattr(sys.modules.get(_GENERATOR), _GENERATED_FOLDER, None)
    script = "" if spec else str(getattr(main, "__file__", ""))
    # The modules beside a script in site-packages are the script's own.
    own_root = os.path.join(os.path.dirname(script), "") if script.startswith(roots) else "\0"
    names: dict[str, list[str]] = {"third_party": [], "own": []}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        # Some modules of torch have a file that is not a path.
        if name in excluded or not isinstance(file, str) or not os.path.isabs(file):
            continue
        if os.path.dirname(file) == generated:
            continue
        installed = file.startswith(roots) and not file.startswith(own_root)
        is_this_package = name.partition(".")[0] == _THIS_PACKAGE
        names["third_party" if installed or is_this_package else "own"].append(name)
    return names


def changed_environment() -> dict[str, str | None]:
    """Return the variables that have changed since the start, with digests of their values.

    Imported modules set some of them, in the spare too. A variable that the spare lacks after its
    imports was set by the script, probably for a module that reads it at import, such as
    OMP_NUM_THREADS or HF_HOME.
    """
    first: set[bytes] = set()
    with contextlib.suppress(OSError):  # not Linux: all variables are returned
        first = set(filter(None, _FIRST_ENVIRONMENT.read_bytes().split(b"\0")))
    now = {key + b"=" + value for key, value in os.environb.items()}
    names = {os.fsdecode(entry.partition(b"=")[0]) for entry in first ^ now}
    return {name: environment_digest(name) for name in sorted(names - _IGNORED_VARIABLES)}


def _library_roots() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    roots = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.join(root, "") for root in roots)
