"""The diagnosis of the end of an attempt: facts in, diagnosis out."""

import errno
from typing import Any

import pytest

from orchestrator.supervisor.recovery.diagnosis import Diagnosis, ExitFacts, Outcome, diagnose
from orchestrator.supervisor.recovery.failure_kinds import Kind


def diagnosis(**facts: Any) -> Diagnosis:
    usual: dict[str, Any] = {
        "returncode": 0,
        "connected": True,
        "reported": None,
        "stop_requested": False,
        "lost_steps": 0,
    }
    return diagnose(ExitFacts(**(usual | facts)))


@pytest.mark.parametrize("text", ["\ud800", "\0", "\udfff\x1b[2J" * 10_000])
@pytest.mark.parametrize("key", ["type", "message", "frame", "thread", "traceback"])
def test_any_text_of_an_exception_is_diagnosed(key: str, text: str) -> None:
    """Text that cannot be encoded has a fingerprint like any other."""
    error = {"type": "ValueError", "message": "", key: text}
    assert diagnosis(returncode=1, error=error).fingerprint is not None


@pytest.mark.parametrize(
    ("facts", "kind", "outcome", "status"),
    [
        ({"reported": 0}, "complete", "complete", 0),
        ({"reported": 0, "returncode": 1}, "failed_afterwards", "refused", 70),
        ({"reported": 0, "returncode": -15, "stop_requested": True}, "complete", "complete", 0),
        ({"reported": 75, "returncode": 75}, "stopped", "stopped", 75),
        ({"reported": 74, "returncode": 74, "lost_steps": 1}, "stopped", "stopped", 74),
        ({"reported": 74, "returncode": 74}, "stopped", "stopped", 75),
        ({"reported": 75, "returncode": -15}, "stopped", "stopped", 75),
        ({"reported": 78, "returncode": 78}, "refused", "refused", 78),
        ({"returncode": 65}, "refused", "refused", 65),
        ({"reported": 78, "returncode": 1}, "refused", "refused", 78),
        ({"refusal": "no", "returncode": 1, "connected": False}, "refused", "refused", 78),
        ({"refusal": "no", "returncode": 1}, "exit_status", "failed", 70),
        ({"refusal": "no", "connected": False}, "complete", "complete", 0),
        ({"returncode": -9, "stop_requested": True, "lost_steps": 3}, "stopped", "stopped", 74),
        ({"returncode": -15, "stop_requested": True}, "stopped", "stopped", 75),
        ({"returncode": 0}, "ended_early", "failed", 70),
        ({"returncode": 0, "connected": False}, "complete", "complete", 0),
        ({"returncode": 1, "connected": False}, "exit_status", "failed", 70),
        ({"returncode": -9}, "killed", "failed", 70),
        ({"returncode": 137}, "killed", "failed", 70),
        ({"returncode": -9, "oom_kills": 1}, "oom_killed", "failed", 70),
        ({"returncode": 137, "oom_kills": 1}, "oom_killed", "failed", 70),
        ({"returncode": -15}, "terminated", "failed", 70),
        ({"returncode": -11}, "crashed", "failed", 70),
        ({"returncode": -6, "oom_kills": 1}, "crashed", "failed", 70),
        ({"returncode": -24}, "signal", "failed", 70),
        ({"returncode": -40}, "signal", "failed", 70),
        ({"returncode": -9, "hang": "no step for 90 s"}, "hang", "failed", 70),
        ({"reported": 75, "returncode": 75, "hang": "no step"}, "hang", "failed", 70),
        (
            {"returncode": -9, "hang": "no end", "error": {"type": "ValueError"}},
            "exception",
            "failed",
            70,
        ),
        ({"reported": 0, "hang": "no step"}, "complete", "complete", 0),
        ({"reported": 75, "hang": "no step", "stop_requested": True}, "stopped", "stopped", 75),
    ],
)
def test_diagnosis(facts: dict[str, Any], kind: str, outcome: str, status: int) -> None:
    """Each kind of end has the outcome and the status of the contract."""
    found = diagnosis(**facts)
    assert (found.kind, found.outcome, found.status) == (Kind(kind), Outcome(outcome), status)


def error(type_: str = "RuntimeError", message: str = "", **facts: Any) -> dict[str, Any]:
    return {"type": type_, "message": message, "frame": "train.py:3 main", **facts}


WORKER = "DataLoader worker (pid 17) is killed by signal: "


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (error("ValueError", "bad"), Kind.EXCEPTION),
        (error("FileNotFoundError", bases=["OSError"], errno=errno.ENOENT), Kind.EXCEPTION),
        (error("ModuleNotFoundError", bases=["ImportError"]), Kind.IMPORT_ERROR),
        (error("_ArrayMemoryError", bases=["MemoryError"]), Kind.MEMORY_ERROR),
        (error(message="DefaultCPUAllocator: can't allocate memory"), Kind.MEMORY_ERROR),
        (error("OutOfMemoryError", "CUDA out of memory. Tried to"), Kind.CUDA_OUT_OF_MEMORY),
        (error(message="CUDA error: out of memory"), Kind.CUDA_OUT_OF_MEMORY),
        (error(message="CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), Kind.CUDA_OUT_OF_MEMORY),
        (error("AcceleratorError", "CUDA error: an illegal memory access"), Kind.CUDA_ERROR),
        (error(message="CUDA error: device-side assert triggered"), Kind.CUDA_ERROR),
        (error(message="CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), Kind.CUDA_ERROR),
        (error(message="CUDA error: uncorrectable ECC error encountered"), Kind.HARDWARE),
        (error(message="CUDA error: unspecified launch failure"), Kind.HARDWARE),
        (error(message="Unable to determine: GPU is lost"), Kind.HARDWARE),
        (error(message="No CUDA GPUs are available"), Kind.HARDWARE),
        (error("DistBackendError", "NCCL error: ncclSystemError: x"), Kind.HARDWARE),
        (error("OSError", errno=errno.ENOSPC), Kind.DISK_FULL),
        (error("OSError", "Caught OSError\n[Errno 28] No space left on device"), Kind.DISK_FULL),
        (error("OSError", errno=errno.ESTALE), Kind.IO_ERROR),
        (error("ReadTimeout", bases=["TimeoutError", "OSError"]), Kind.IO_ERROR),
        (error(message=f"{WORKER}Bus error. It is possible that"), Kind.SHARED_MEMORY_FULL),
        (error(message=f"{WORKER}Killed. "), Kind.WORKER_KILLED),
        (error(message=f"{WORKER}Segmentation fault. "), Kind.CRASHED),
        (error("EOFError", traceback="line 541, in rebuild_storage_fd\n"), Kind.WORKER_KILLED),
        (error(message="cannot load", cause=error("MemoryError")), Kind.MEMORY_ERROR),
        (error(message="it became worse", cause=error("KeyError")), Kind.EXCEPTION),
    ],
)
def test_exceptions_are_classified(error: dict[str, Any], kind: Kind) -> None:
    """Type, base, errno, text and traceback decide, of the exception and of its causes."""
    assert diagnosis(returncode=1, error=error).kind is kind


@pytest.mark.parametrize("message", [f"{WORKER}Killed. ", "DataLoader worker exited unexpectedly"])
def test_worker_death_is_an_oom_kill_where_the_killer_has_struck(message: str) -> None:
    """Torch says only that a worker was killed or is gone; the cgroup's counter tells more."""
    found = diagnosis(returncode=1, error=error(message=message), oom_kills=1)
    assert found.kind is Kind.OOM_KILLED
    assert found.fingerprint is None


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ([f"W1124 profiler.py:858] RuntimeError: {WORKER}Bus error. It"], Kind.SHARED_MEMORY_FULL),
        (["OSError: Input/output error"], Kind.EXCEPTION),
    ],
)
def test_signal_of_a_worker_is_read_from_the_output_if_other_code_caught_it(
    output: list[str], kind: Kind
) -> None:
    """Torch raises in the middle of other code, which may catch the error and only print it."""
    message = "DataLoader worker (pid(s) 17) exited unexpectedly"
    assert diagnosis(returncode=1, error=error(message=message), output=output).kind is kind


def test_exception_without_error_file_is_read_from_the_output() -> None:
    """A script that fails before its session opens has printed why."""
    output = [
        "loading",
        "Traceback (most recent call last):",
        '  File "train.py", line 7, in <module>',
        "    import fast_loader",
        "ModuleNotFoundError: No module named 'fast_loader'",
    ]
    found = diagnosis(returncode=1, connected=False, output=output)
    assert found.kind is Kind.IMPORT_ERROR
    assert "No module named 'fast_loader' (train.py:7 <module>)" in found.cause
    assert diagnosis(returncode=3, connected=False, output=output).kind is Kind.EXIT_STATUS
    assert diagnosis(returncode=2, connected=False, output=output).kind is Kind.USAGE


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("first\nsecond", "failed with RuntimeError: first (train.py:3 main)"),
        (
            "Caught KeyError in DataLoader worker process 0.\n  File x\nKeyError: 5\n",
            "KeyError: 5 (",
        ),
        ("", "failed with RuntimeError (train.py:3 main)"),
    ],
)
def test_most_telling_line_of_a_message_is_quoted(message: str, words: str) -> None:
    """It is the first line, but the last one of a loader worker's exception."""
    assert words in diagnosis(returncode=1, error=error(message=message)).cause


def mark(**facts: Any) -> str | None:
    return diagnosis(**({"returncode": 1} | facts)).fingerprint


def test_fingerprint_ignores_varying_parts_of_a_message() -> None:
    """Numbers, addresses, dates and hashes do not make two failures differ; the rest does."""
    texts = (
        "sample 17 at 0x7f11 on 2026-11-23 10:11:12 in deadbeef01",
        "sample 4 at 0xaa00 on 2025-01-02 01:02:03 in 0123456789ab",
    )
    first, second = (mark(error=error(message=text)) for text in texts)
    assert first == second
    different = [
        error(),
        error(type_="KeyError"),
        error(message="worse"),
        error() | {"frame": "other:1 f"},
    ]
    assert len({mark(error=e) for e in different}) == 4
    assert mark(returncode=3) != mark(returncode=4)


@pytest.mark.parametrize("value", ["0.25", "-0.25", "2.5e-05", "1e+09", "3", "+7"])
def test_fingerprint_ignores_numbers_however_they_are_written(value: str) -> None:
    """Python writes a small loss with an exponent and a negative one with a sign."""
    expected = mark(error=error(message="loss is 17, which is too much"))
    assert mark(error=error(message=f"loss is {value}, which is too much")) == expected


@pytest.mark.parametrize("number", [9, 15, 2, 1])
def test_signals_from_outside_have_no_fingerprint(number: int) -> None:
    """Two kills at the same step are chance, also behind a shell, which adds 128."""
    assert mark(returncode=-number) is None
    assert mark(returncode=128 + number) is None
    assert mark(returncode=-11) is not None
    assert mark(returncode=128 + 11) is not None


def test_crashes_differ_by_their_innermost_frame() -> None:
    """Two segfaults are the same defect if the innermost frame is the same."""

    def crash(line: int) -> Diagnosis:
        output = [
            "Fatal Python error: Segmentation fault",
            "Current thread 0x1 (most recent call first):",
            f'  File "a.py", line {line} in f',
        ]
        return diagnosis(returncode=-11, output=output)

    assert crash(1).fingerprint == crash(1).fingerprint != crash(2).fingerprint
    assert crash(3).stack == ["a.py:3 f"]
    assert crash(3).cause.endswith("at a.py:3 f")


PRINTED = {
    "refused connection": ("ConnectionRefusedError: [Errno 111] Connection refused", Kind.IO_ERROR),
    "name": ("urllib.error.URLError: <urlopen error [Errno -2] Name or service", Kind.IO_ERROR),
    "name of a socket": ("socket.gaierror: [Errno -3] Temporary failure", Kind.IO_ERROR),
    "busy port": ("OSError: [Errno 98] Address already in use", Kind.IO_ERROR),
    "number alone": ("OSError: [Errno 113] anything", Kind.IO_ERROR),
    "busy server": ("urllib.error.HTTPError: HTTP Error 503: Service", Kind.IO_ERROR),
    "hub's limit": (
        "requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url: https://x",
        Kind.IO_ERROR,
    ),
    "hub out of reach": ("OSError: We couldn't connect to 'https://hub' to load", Kind.IO_ERROR),
    "timeout": ("httpx.ReadTimeout: The read operation timed out", Kind.IO_ERROR),
    "wrong address": ("urllib.error.HTTPError: HTTP Error 404: Not Found", Kind.EXCEPTION),
    "no permission": ("HTTPError: 403 Client Error: Forbidden for url: https://x", Kind.EXCEPTION),
    "typing error": ("urllib.error.URLError: <urlopen error unknown url type: h", Kind.EXCEPTION),
    "missing file": ("FileNotFoundError: [Errno 2] No such file or directory", Kind.EXCEPTION),
    "driver": ("RuntimeError: CUDA is not available", Kind.HARDWARE),
}


@pytest.mark.parametrize("printed", PRINTED)
def test_what_is_not_there_yet_is_told_from_defects(printed: str) -> None:
    """A network, a port or a device may come; a wrong address, a 404 or a missing file stays."""
    line, kind = PRINTED[printed]
    output = ["Traceback (most recent call last):", '  File "train.py", line 7, in <module>', line]
    assert diagnosis(returncode=1, connected=False, output=output).kind is kind
    further = [
        "During handling of the above exception, another exception occurred:",
        "Traceback (most recent call last):",
        '  File "train.py", line 9, in <module>',
        "RuntimeError: no data set",
    ]
    assert diagnosis(returncode=1, connected=False, output=output + further).kind is kind


def test_asserted_device_is_missing_hardware() -> None:
    """An assertion has no message, but its line is in the traceback."""
    output = [
        "Traceback (most recent call last):",
        '  File "train.py", line 7, in <module>',
        "    assert torch.cuda.is_available()",
        "AssertionError",
    ]
    assert diagnosis(returncode=1, connected=False, output=output).kind is Kind.HARDWARE


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"returncode": 124}, Kind.TERMINATED),
        ({"returncode": 143}, Kind.TERMINATED),
        ({"returncode": 130}, Kind.TERMINATED),
        ({"returncode": 124, "connected": True}, Kind.EXIT_STATUS),
    ],
)
def test_stop_before_the_session_is_told_through_wrappers(
    facts: dict[str, Any], kind: Kind
) -> None:
    """`timeout` and shells end with a status of their own when a stop has ended the command."""
    assert diagnosis(**({"connected": False} | facts)).kind is kind


def test_command_that_never_started_is_a_matter_of_configuration() -> None:
    """It ends the run with 78, unless a session was opened or refused."""
    facts = {
        "returncode": 1,
        "connected": False,
        "command": ["env", "python", "-m", "tarin"],
        "output": ["/bin/python: No module named tarin"],
    }
    found = diagnosis(**facts)
    assert (found.kind, found.status, found.outcome) == (Kind.NEVER_STARTED, 78, Outcome.FAILED)
    assert "never started: /bin/python: No module named tarin" in found.cause
    assert diagnosis(**facts | {"connected": True}).kind is Kind.EXIT_STATUS
    assert diagnosis(**facts | {"refusal": "no"}).kind is Kind.REFUSED
