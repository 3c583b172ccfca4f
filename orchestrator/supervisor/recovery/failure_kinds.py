"""Patterns that classify how a trainer ended: exceptions, their messages, and signals."""

import errno
import re
import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What ended an attempt; the journal and exit.json have it (docs/explanation/restarts.md)."""

    COMPLETE = "complete"
    FAILED_AFTERWARDS = "failed_afterwards"
    STOPPED = "stopped"
    NEVER_STARTED = "never_started"
    REFUSED = "refused"
    ENDED_EARLY = "ended_early"
    EXIT_STATUS = "exit_status"
    USAGE = "usage"
    EXCEPTION = "exception"
    IMPORT_ERROR = "import_error"
    MEMORY_ERROR = "memory_error"
    SHARED_MEMORY_FULL = "shared_memory_full"
    CUDA_OUT_OF_MEMORY = "cuda_out_of_memory"
    CUDA_ERROR = "cuda_error"
    HARDWARE = "hardware"
    DISK_FULL = "disk_full"
    IO_ERROR = "io_error"
    WORKER_KILLED = "worker_killed"
    OOM_KILLED = "oom_killed"
    KILLED = "killed"
    TERMINATED = "terminated"
    CRASHED = "crashed"
    SIGNAL = "signal"
    HANG = "hang"


_NOTHING = r"(?!)"


@dataclass(frozen=True)
class Symptom:
    """A pattern of a kind of exception: any of the four criteria is enough.

    ``types`` are names of classes: that of the exception or of one of its bases. ``text`` and
    ``raised_in`` are searched for in the message and in the traceback.
    """

    kind: Kind
    text: str = _NOTHING
    raised_in: str = _NOTHING
    types: frozenset[str] = frozenset()
    errnos: frozenset[int] = frozenset()

    def matches(self, error: dict[str, Any]) -> bool:
        """Return whether an exception in the form of error.json matches."""
        names = {error.get("type"), *(error.get("bases") or ())}
        return (
            not self.types.isdisjoint(names)
            or error.get("errno") in self.errnos
            or re.search(self.text, str(error.get("message")), re.IGNORECASE) is not None
            or re.search(self.raised_in, str(error.get("traceback"))) is not None
        )


# A traceback that was only printed has the name of the class, and not those of its bases.
NETWORK_TYPES = frozenset(
    {
        *("ConnectionRefusedError", "ConnectionResetError", "ConnectionAbortedError"),
        *("gaierror", "herror", "timeout", "URLError", "RemoteDisconnected", "IncompleteRead"),
        *("ConnectTimeout", "ReadTimeout", "ReadTimeoutError", "ConnectTimeoutError"),
        *("MaxRetryError", "NewConnectionError", "NameResolutionError", "ProtocolError"),
        *("ChunkedEncodingError", "ConnectError", "ReadError", "RemoteProtocolError"),
        *("ClientConnectorError", "ClientOSError", "ServerDisconnectedError", "PoolTimeout"),
        *("EndpointConnectionError", "ConnectionClosedError", "LocalEntryNotFoundError"),
    }
)
NETWORK_ERRNOS = frozenset(
    {
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENETRESET),
        *(errno.EADDRINUSE, errno.EADDRNOTAVAIL),
    }
)

# The first match counts: the more specific texts of torch come first.
SYMPTOMS = (
    Symptom(
        Kind.SHARED_MEMORY_FULL,
        r"DataLoader worker .* killed by signal: Bus error"
        r"|unable to write to file </torch_.*No space left"
        r"|unable to allocate shared memory",
    ),
    Symptom(
        Kind.WORKER_KILLED,
        r"DataLoader worker .* killed by signal: (Killed|Terminated|Hangup|Interrupt)",
    ),
    Symptom(Kind.CRASHED, r"DataLoader worker .* killed by signal"),
    # A worker died with a batch on its way: torch raises EOFError or ConnectionResetError here.
    Symptom(Kind.WORKER_KILLED, raised_in=r"in rebuild_storage_fd\b"),
    Symptom(
        Kind.CUDA_OUT_OF_MEMORY,
        r"\b(CUDA|HIP|XPU|MPS backend)( error:)? out of memory|(CUDNN|CUBLAS)_STATUS_ALLOC_FAILED",
        types=frozenset({"OutOfMemoryError"}),
    ),
    Symptom(
        Kind.HARDWARE,
        r"\becc error|fallen off the bus|(gpu|device) (is |has been )?lost\b"
        r"|unspecified launch failure|hardware (stack )?error|nvlink|\bxid\b"
        r"|devices? (is|are) busy or unavailable|no CUDA-capable device|no CUDA GPUs are available"
        r"|no NVIDIA driver|CUDA unknown error|CUDA error: unknown error"
        r"|CUDA driver initialization failed"
        r"|nccl(System|Remote|UnhandledCuda)Error"
        r"|(CUDA|GPU|HIP|ROCm|XPU)( device)? (is |was )?(unavailable|not (available|found))"
        r"|torch\.cuda\.is_available\(\) is False|no supported gpu backend",
        raised_in=r"assert torch\.(cuda|xpu)\.is_available\(\)",
    ),
    Symptom(
        Kind.CUDA_ERROR,
        r"\b(CUDA|HIP) error|device-side assert|(CUDNN|CUBLAS|CUSPARSE|CUFFT)_(STATUS|INTERNAL)",
        types=frozenset({"AcceleratorError"}),
    ),
    Symptom(
        Kind.MEMORY_ERROR,
        r"DefaultCPUAllocator|std::bad_alloc|Cannot allocate memory",
        types=frozenset({"MemoryError"}),
        errnos=frozenset({errno.ENOMEM}),
    ),
    Symptom(
        Kind.DISK_FULL,
        r"No space left on device|Disk quota exceeded",
        errnos=frozenset({errno.ENOSPC, errno.EDQUOT}),
    ),
    # Before the network's symptoms, since these have its types too: they do not pass.
    Symptom(
        Kind.EXCEPTION,
        r"HTTP Error 4(?!08|25|29)\d\d|\b4(?!08|25|29)\d\d Client Error|unknown url type"
        r"|no host given|CERTIFICATE_VERIFY_FAILED|\b(Gated|Repository|Revision|Entry) ?Not ?Found",
        types=frozenset({"RepositoryNotFoundError", "GatedRepoError", "EntryNotFoundError"}),
    ),
    Symptom(
        Kind.IO_ERROR,
        r"HTTP Error (408|425|429|5\d\d)|\b(408|425|429) Client Error|\b5\d\d Server Error"
        r"|too many requests|service unavailable|bad gateway|gateway time-?out"
        r"|temporary failure in name resolution|name or service not known|nodename nor servname"
        r"|name resolution|getaddrinfo failed|max retries exceeded|remote end closed connection"
        r"|connection (refused|reset|aborted|timed out|broken)|connection error"
        r"|couldn.t (connect to|reach)|(read|connect|operation|request) timed out"
        r"|network is (unreachable|down)|no route to host|host is (down|unreachable)"
        r"|address already in use|check your internet connection|UNEXPECTED_EOF_WHILE_READING",
        types=NETWORK_TYPES,
        errnos=NETWORK_ERRNOS,
    ),
    Symptom(
        Kind.IO_ERROR,
        r"Input/output error|Remote I/O error|Stale file handle|Transport endpoint is not connected"
        r"|PytorchStreamWriter failed writing|inline_container.*unexpected pos",
        types=frozenset({"ConnectionError", "TimeoutError"}),
        errnos=frozenset(
            {
                errno.EIO,
                errno.ESTALE,
                errno.ENOTCONN,
                errno.ETIMEDOUT,
                errno.ENETDOWN,
                errno.ENETUNREACH,
                errno.EHOSTDOWN,
                errno.EHOSTUNREACH,
                errno.ENODEV,
                errno.ENXIO,
            }
        ),
    ),
    Symptom(Kind.IMPORT_ERROR, types=frozenset({"ImportError", "ModuleNotFoundError"})),
)

_OUTSIDE = "sent from outside: by a person, a scheduler or a service manager"
_ITSELF = "raised by the process itself"
# Each signal's kind, and its likely sender.
SIGNALS: dict[int, tuple[Kind, str]] = {
    signal.SIGKILL: (
        Kind.KILLED,
        "sent from outside: by a person, a scheduler or a memory watcher; the kernel's OOM killer "
        "has not struck here",
    ),
    signal.SIGTERM: (Kind.TERMINATED, _OUTSIDE),
    signal.SIGINT: (Kind.TERMINATED, _OUTSIDE),
    signal.SIGHUP: (Kind.TERMINATED, _OUTSIDE),
    signal.SIGSEGV: (Kind.CRASHED, "invalid memory access"),
    signal.SIGBUS: (Kind.CRASHED, "memory that a file or /dev/shm could not provide"),
    signal.SIGABRT: (Kind.CRASHED, "abort() by a library, which may have printed why"),
    signal.SIGFPE: (Kind.CRASHED, "arithmetic fault"),
    signal.SIGILL: (Kind.CRASHED, "instruction that this processor does not have"),
    signal.SIGTRAP: (Kind.CRASHED, _ITSELF),
    signal.SIGSYS: (Kind.CRASHED, "a system call that a sandbox forbids"),
    signal.SIGXCPU: (Kind.SIGNAL, "the limit on processor time, ulimit -t"),
    signal.SIGXFSZ: (Kind.SIGNAL, "the limit on file sizes, ulimit -f"),
    signal.SIGPIPE: (Kind.SIGNAL, "no process reads what it writes"),
    signal.SIGALRM: (Kind.SIGNAL, "a timer of the process itself"),
}
OTHER_SIGNAL = (Kind.SIGNAL, _OUTSIDE)

# What a person can do about it, unless only the script can be fixed.
ADVICE = {
    Kind.NEVER_STARTED: "correct the command, or change to the directory of the script",
    Kind.MEMORY_ERROR: "it needs less memory per step, or a machine with more",
    Kind.OOM_KILLED: (
        "it needs less memory (fewer or leaner loader workers, a smaller batch), or a higher limit"
    ),
    Kind.SHARED_MEMORY_FULL: (
        "give it more shared memory (docker run --shm-size, a larger /dev/shm), or use fewer "
        "loader workers"
    ),
    Kind.CUDA_OUT_OF_MEMORY: "it needs a smaller batch or accumulation, or another GPU",
    Kind.CUDA_ERROR: "CUDA_LAUNCH_BLOCKING=1 shows the call that is to blame",
    Kind.HARDWARE: "look at the GPU (nvidia-smi, dmesg | grep Xid) or run on another machine",
    Kind.DISK_FULL: "free some space or raise the quota",
    Kind.USAGE: "correct the command's arguments, to which --resume-arg adds",
    Kind.ENDED_EARLY: (
        "to end early on purpose, leave the `with Session(...)` block instead of exiting in it"
    ),
}
