"""What this process has loaded: what a spare may import, what it must not, and with what set."""

import contextlib
import os
import site
import sys
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path

from orchestrator.ipc.messages import ATTEMPT_VARIABLE, RESUME_VARIABLE
from orchestrator.spare.worker import environment_digest
from orchestrator.system.durable import write_json
from orchestrator.telemetry.trackers import MLFLOW_VARIABLE

# So many more than at the last report are worth another one.
GROWTH = 50
# Ours may be an editable installation, and the spare needs it all the same.
_OURS = __name__.partition(".")[0]
# torch writes modules into a temporary folder of each process and imports them from there: on
# torch 2.7 to 2.9 at the first step of an optimizer. These are not the script's.
_GENERATOR = "torch.distributed.nn.jit.instantiator"
_GENERATED_FOLDER = "INSTANTIATED_TEMPLATE_DIR_PATH"
_FIRST_ENVIRONMENT = Path("/proc/self/environ")
# The attempt's own, and what torch and Lightning set, and read, when they are used and not when
# they are imported.
_PASSED_OVER = {
    *(ATTEMPT_VARIABLE, RESUME_VARIABLE, MLFLOW_VARIABLE),
    *("CUDA_MODULE_LOADING", "DISABLE_CUPTI_LAZY_REINIT", "TEARDOWN_CUPTI"),
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
}


class ModuleReport:
    """Writes the list for the spare, again after it has grown; for a thread that must not wait."""

    def __init__(self, file: Path, tell: Callable[[], None]) -> None:
        """``tell`` is called in a thread when the file is there."""
        self._file = file
        self._tell = tell
        self._worth_at: int | None = None

    def consider(self) -> None:
        """Report if that is due; the first call, at the first safe point, is too early for it."""
        count = len(sys.modules)
        if self._worth_at is None:
            self._worth_at = 0
        elif count >= self._worth_at:
            self._worth_at = count + GROWTH
            threading.Thread(target=self._report, name="modules", daemon=True).start()

    def _report(self) -> None:
        # Without the list, say on a full disk, there is no spare and training goes on.
        with contextlib.suppress(OSError):
            write_json(self._file, {**loaded_modules(), "environment": changed_environment()})
            self._tell()


def loaded_modules() -> dict[str, list[str]]:
    """The names of ``third_party`` modules and of the script's ``own``, as their imports ended.

    In that order, what one module does to another is done before a third one uses it, as it was
    here. Third-party is what lies in the interpreter's library or in site-packages, own the rest,
    except for the modules that torch generates.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    # What -m runs must not be imported in advance: there is a warning for those who do.
    passed_over = {"__main__", "__mp_main__", spec and spec.name}
    roots = _library_roots()
    generated = getattr(sys.modules.get(_GENERATOR), _GENERATED_FOLDER, None)
    script = "" if spec else str(getattr(main, "__file__", ""))
    # A script that lies in site-packages itself has its own modules beside it.
    own_root = os.path.join(os.path.dirname(script), "") if script.startswith(roots) else "\0"
    names: dict[str, list[str]] = {"third_party": [], "own": []}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        # torch makes modules whose file is no path.
        if name in passed_over or not isinstance(file, str) or not os.path.isabs(file):
            continue
        if os.path.dirname(file) == generated:
            continue
        installed = file.startswith(roots) and not file.startswith(own_root)
        is_ours = name.partition(".")[0] == _OURS
        names["third_party" if installed or is_ours else "own"].append(name)
    return names


def changed_environment() -> dict[str, str | None]:
    """The variables that are not what they were at the start, with digests of their values.

    The modules of a spare set theirs too. What it does not have then the script has set, most
    likely for modules to read when they are imported, such as OMP_NUM_THREADS or HF_HOME.
    """
    first: set[bytes] = set()
    with contextlib.suppress(OSError):  # not Linux: then all of them are compared
        first = set(filter(None, _FIRST_ENVIRONMENT.read_bytes().split(b"\0")))
    now = {key + b"=" + value for key, value in os.environb.items()}
    names = {os.fsdecode(entry.partition(b"=")[0]) for entry in first ^ now}
    return {name: environment_digest(name) for name in sorted(names - _PASSED_OVER)}


def _library_roots() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    roots = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.join(root, "") for root in roots)
