"""Writes everything that a script can see of its environment, as JSON, to the file named first.

Tests compare the results under `python`, in a cold start and in a spare. With --torch the script
includes torch and its workers, with --spawn also spawned loader workers. It trains while there is a
file `train`.
"""

import decimal
import gc
import inspect
import io
import json
import locale
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any


class Thing:
    """A class whose instances are pickled by the name of this module."""


class Squares:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return index**2


def in_worker() -> dict[str, Any]:
    """Return what a child process of multiprocessing sees."""
    return {
        "argv": sys.argv,
        "path": sys.path,
        "name": __name__,
        "file": __file__,
        "thing": Thing.__module__,
        "flags": str(sys.flags),
    }


def report_to(queue: Any) -> None:
    queue.put(in_worker())


def module_facts(name: str) -> dict[str, str]:
    values = vars(sys.modules[name])
    names = ("__name__", "__doc__", "__package__", "__file__", "__cached__", "__annotations__")
    facts = {name: repr(values.get(name, "absent")) for name in names}
    facts["__loader__"] = type(values["__loader__"]).__qualname__
    facts["loader path"] = repr(getattr(values["__loader__"], "path", None))
    facts["__spec__"] = repr(getattr(values["__spec__"], "name", None))
    facts["__builtins__"] = type(values["__builtins__"]).__qualname__
    facts["names"] = repr(sorted(name for name in values))
    return facts


def stream_facts(stream: Any) -> dict[str, Any]:
    return {
        "kind": [type(stream).__name__, type(stream.buffer).__name__],
        "name": stream.name,
        "mode": stream.mode,
        "descriptor": stream.fileno(),
        "encoding": stream.encoding,
        "errors": stream.errors,
        "newlines": stream.newlines,
        "line_buffering": stream.line_buffering,
        "write_through": stream.write_through,
        "original": stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__),
        "tty": stream.isatty(),
    }


def descriptors() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # of the listing itself
        kind = target.split(":")[0] if ":[" in target else target
        found.append(f"{kind} {os.get_inheritable(int(number))}")
    return sorted(found)


def signals() -> dict[str, str]:
    return {
        number.name: repr(signal.getsignal(number)).partition(" at 0x")[0]
        for number in signal.valid_signals()
        if isinstance(number, signal.Signals)
    }


def status_lines() -> dict[str, str]:
    wanted = ("Cap", "Umask", "NoNewPrivs", "Seccomp", "Cpus_allowed_list", "Uid", "Gid", "Groups")
    masks = ("SigPnd", "SigBlk", "SigIgn", "SigCgt")
    facts = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, value = line.split(":", 1)
        if name.startswith((*wanted, "Name", "Threads")):
            facts[name] = value.strip()
        elif name in masks:
            # 32 and 33 are the C library's, which catches one from the first thread on.
            facts[name] = hex(int(value, 16) & ~(3 << 31))
    return facts


def workers(method: str) -> Any:
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=report_to, args=(queue,))
    process.start()
    answer = queue.get()
    process.join()
    return answer, process.exitcode


def collect() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "executable": sys.executable,
        "path": sys.path,
        "prefix": [sys.prefix, sys.exec_prefix, sys.base_prefix],
        "flags": str(sys.flags),
        "xoptions": sys._xoptions,
        "warnoptions": sys.warnoptions,
        "filters": sorted(map(repr, warnings.filters)),
        "debug": __debug__,
        "meta_path": [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path],
        "path_hooks": len(sys.path_hooks),
        "excepthook": sys.excepthook is sys.__excepthook__,
        "displayhook": sys.displayhook is sys.__displayhook__,
        "recursion": sys.getrecursionlimit(),
        "switch": sys.getswitchinterval(),
        "trace": [sys.gettrace(), sys.getprofile()],
        "gc": [gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.get_freeze_count()],
        "main": module_facts("__main__"),
        "module": module_facts(__name__),
        "callers": [frame.filename for frame in inspect.stack()[1:]],
        "streams": [stream_facts(s) for s in (sys.stdin, sys.stdout, sys.stderr)],
        "cwd": os.getcwd(),
        "environ": dict(os.environ),
        "environb": {os.fsdecode(k): os.fsdecode(v) for k, v in os.environb.items()},
        "child's environment": sorted(
            subprocess.run(["env", "-0"], capture_output=True, text=True, check=True).stdout.split(
                "\0"
            )
        ),
        "umask": os.umask(0o22),
        "descriptors": descriptors(),
        **status_lines(),
        "signals": signals(),
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "itimer": signal.getitimer(signal.ITIMER_REAL),
        "limits": {
            name: resource.getrlimit(getattr(resource, name))
            for name in dir(resource)
            if name.startswith("RLIMIT_")
        },
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "nice of threads": sorted(
            {os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir("/proc/self/task")}
        ),
        "scheduler": os.sched_getscheduler(0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "session": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
        "threads": [(t.name, t.daemon) for t in threading.enumerate()],
        "main thread": threading.main_thread() is threading.current_thread(),
        "next thread": threading.Thread().name,
        "start method": multiprocessing.get_start_method(allow_none=True),
        "start methods": multiprocessing.get_all_start_methods(),
        "process": multiprocessing.current_process().name,
        "locale": [locale.setlocale(locale.LC_ALL), locale.getpreferredencoding()],
        "decimal": repr(decimal.getcontext()),
        "pickled": pickle.loads(pickle.dumps(Thing())).__class__ is Thing,
        "pickle": repr(pickle.dumps(Thing())),
        "buffer": io.DEFAULT_BUFFER_SIZE,
    }
    return facts


def collect_torch() -> dict[str, Any]:
    import torch
    import torch._dynamo  # as an optimizer does
    from torch.utils.data import DataLoader

    import orchestrator.training  # noqa: F401 - which sets an excepthook

    def loads(method: str) -> bool:
        loader = DataLoader(Squares(), num_workers=1, multiprocessing_context=method)  # type: ignore
        squares = [batch.item() for batch in loader]
        # Its queue's own thread may still be at its end.
        for thread in threading.enumerate():
            if thread.name == "QueueFeederThread":
                thread.join(10)
        return squares == [0, 1, 4, 9]

    methods = ("fork", "spawn") if "--spawn" in sys.argv else ("fork",)
    return {
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "seed": torch.initial_seed(),
        "numbers": torch.manual_seed(1) and torch.rand(3).tolist(),
        "defaults": [str(torch.get_default_dtype()), torch.is_grad_enabled()],
        "cuda initialised": torch.cuda.is_initialized(),
        "children": {method: workers(method) for method in multiprocessing.get_all_start_methods()},
        "loaders": {method: loads(method) for method in methods},
    }


def train() -> None:
    import torch

    from orchestrator.training import Session

    with Session(model=torch.nn.Linear(1, 1)) as session:
        while Path("train").exists():
            time.sleep(0.02)
            session.step()
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    target = Path(sys.argv[1])
    facts: dict[str, Any] = {}
    if "--torch" in sys.argv:
        facts["torch"] = collect_torch()
    facts |= collect()
    target.with_name(target.name + os.environ.get("ORCHESTRATOR_ATTEMPT", "")).write_text(
        json.dumps(facts, default=str, indent=1, sort_keys=True)
    )
    print("to stdout")
    print("to stderr", file=sys.stderr)
    if Path("train").exists():
        train()


if __name__ == "__main__":
    main()
