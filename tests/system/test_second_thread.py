"""Work beside a block: together, with its result, and where there are no more threads."""

import threading

import pytest

from orchestrator.system.second_thread import in_second_thread

LONG_SECONDS = 60.0


def test_work_runs_while_the_block_does() -> None:
    """The block can wait for what the work does."""
    done = threading.Event()
    with in_second_thread(done.set) as result:
        assert done.wait(LONG_SECONDS)
    assert result.result() is None


def test_block_ends_after_the_work() -> None:
    """The result is there once the block has ended, also where the block has raised."""
    begun = threading.Event()
    with pytest.raises(KeyError), in_second_thread(lambda: begun.wait(LONG_SECONDS)) as result:
        begun.set()
        raise KeyError
    assert result.result(0)


def test_exception_of_the_work_is_its_result() -> None:
    """What the work raises reaches who asks for its result."""
    with in_second_thread(lambda: 1 // 0) as result:
        pass
    with pytest.raises(ZeroDivisionError):
        result.result(0)


def test_work_runs_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system allows no more threads, the work follows the block."""
    order = []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with in_second_thread(lambda: order.append("work")):
        order.append("block")
    assert order == ["block", "work"]
