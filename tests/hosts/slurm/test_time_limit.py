"""The end of a job is polled, and a stop is requested before it."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.hosts.slurm.time_limit import TimeLimitWatch
from tests.hosts.slurm.fake_scontrol import FAR_SECONDS, Controller, query_of
from tests.support import wait_until

GRACE_SECONDS = 0.5
POLL_SECONDS = 0.05


def watch(body: Callable[[list[str]], None], known_end: int | None = None) -> list[str]:
    """Return the stops that a watched job requests; ``body`` runs beside it, in a thread."""
    stops: list[str] = []

    async def main() -> None:
        query = query_of(known_end)
        time_limit = TimeLimitWatch(query, GRACE_SECONDS, lambda: 0.0, stops.append, POLL_SECONDS)
        watching = asyncio.ensure_future(time_limit.watch())
        await asyncio.to_thread(body, stops)
        watching.cancel()

    asyncio.run(main())
    return stops


def test_changed_time_limit_is_respected(controller: Controller) -> None:
    """The stop is requested when the current end is near, wherever the end was before."""

    def body(stops: list[str]) -> None:
        wait_until(lambda: controller.count_calls("show job") > 3, "questions")
        assert stops == []
        controller.set_job(1.0)
        wait_until(lambda: bool(stops), "a stop")

    assert watch(body) == ["the end of SLURM job 7"]


def test_preemption_is_noticed_without_a_signal(controller: Controller) -> None:
    """A job that is about to be preempted stops at once, whatever its grace time."""

    def body(stops: list[str]) -> None:
        wait_until(lambda: controller.count_calls("show job") > 1, "questions")
        controller.set_job(FAR_SECONDS, PreemptTime=str(int(time.time())))
        wait_until(lambda: bool(stops), "a stop")

    assert watch(body) == ["the preemption of SLURM job 7"]


def test_last_known_end_counts_without_an_answer(controller: Controller, tmp_path: Path) -> None:
    """The last known end counts when the controller stops answering."""
    controller.set_job(4.0)

    def body(stops: list[str]) -> None:
        wait_until(lambda: controller.count_calls("config") > 0, "a question")
        (tmp_path / "job").unlink()
        wait_until(lambda: bool(stops), "a stop")

    assert watch(body) == ["the end of SLURM job 7"]


def test_end_in_the_environment_counts_without_scontrol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without scontrol the end in the environment counts."""
    monkeypatch.setenv("PATH", str(tmp_path))
    stops = watch(
        lambda stops: wait_until(lambda: bool(stops), "a stop"), known_end=int(time.time()) + 1
    )
    assert stops == ["the end of SLURM job 7"]
