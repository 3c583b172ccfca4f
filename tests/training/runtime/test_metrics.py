"""metrics.jsonl: a line for each step, none twice and none torn, whatever cut the run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from orchestrator.system.lines_from_end import lines_from_end
from orchestrator.training import Session
from orchestrator.training.runtime import metrics
from orchestrator.training.runtime.metrics import MetricsFile, stride_at
from tests.training.support import Training


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def places_of(path: Path) -> list[tuple[int, int, bool]]:
    return [(line["step"], line["epoch"], line["poll"]) for line in lines_of(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(path: Path, *places: tuple[int, int, bool], attempt: int = 1) -> None:
    file = MetricsFile(path, attempt)
    for step, epoch, is_poll in places:
        file.record(step, epoch, {"loss": step / 2}, is_poll=is_poll)
    file.flush()


def test_line_has_step_time_attempt_and_metrics(path: Path) -> None:
    """A line has step, epoch, time, attempt and metrics, in strict JSON."""
    file = MetricsFile(path, 3)
    file.record(7, 1, {"loss": 0.5, "worst": float("nan"), "text": "no number"}, is_poll=False)
    file.flush()
    line = lines_of(path)[0]
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "step": 7,
        "epoch": 1,
        "poll": False,
        "attempt": 3,
        "metrics": {"loss": 0.5, "worst": "nan"},
    }


@pytest.mark.parametrize(
    ("place", "left"),
    [
        ((0, 0), 0),
        ((1, 0), 1),
        ((2, 0), 3),  # what is polled there may not be measured again
        ((2, 1), 3),
        ((3, 1), 4),
        ((9, 9), 5),
    ],
)
def test_lines_of_steps_to_be_done_again_are_cut_off(
    path: Path, place: tuple[int, int], left: int
) -> None:
    """A resumed run's file ends where it was resumed; a torn or false last line is gone."""
    places = [(1, 0, False), (2, 0, False), (2, 0, True), (3, 1, False), (4, 1, False)]
    write(path, *places)
    with path.open("ab") as file:
        file.write(b'{"step": %s, "epoch": 0, "poll": false, "time": 0}\n' % (b"1" * 5000))
        file.write(b'{"step": 1, "epoch": 0, "poll": false, "ti')
    MetricsFile(path, 2).resume(*place)
    assert places_of(path) == places[:left]


def test_line_after_a_torn_one_is_whole(path: Path) -> None:
    """Half a line that a full disk left costs no other line, nor what is cut off later."""
    write(path, (1, 0, False))
    with path.open("ab") as file:
        file.write(b'{"step": 2, "ep')
    write(path, (3, 0, False), (4, 0, False))
    assert json.loads(path.read_text().splitlines()[2])["step"] == 3
    MetricsFile(path, 2).resume(3, 0)
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 3


def test_lines_of_a_long_run_are_thinned_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file never holds many more steps than allowed, evenly spaced; polls stay."""
    monkeypatch.setattr(metrics, "MOST_STEPS", 8)
    file = MetricsFile(path, None)
    most = 0
    for step in range(1, 101):
        file.record(step, 0, {"loss": 0.0}, is_poll=False)
        if step == 5:
            file.record(step, 0, {"accuracy": 0.0}, is_poll=True)
        file.flush()
        most = max(most, len(places_of(path)))
    assert most <= 8 + 2
    assert places_of(path) == [(5, 0, True), *((step, 0, False) for step in range(16, 101, 16))]


def test_polls_are_thinned_out(path: Path) -> None:
    """Where polls are many, the first of each step have a line, and ever fewer after them."""
    file = MetricsFile(path, None)
    for step in (1, 2):
        for number in range(1000):
            file.record(step, 0, {"number": number}, is_poll=True)
    file.flush()
    kept = [0, 1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512]
    assert [line["metrics"]["number"] for line in lines_of(path)] == kept * 2


@pytest.mark.parametrize("every", [1, 20])
def test_polls_of_a_long_run_are_thinned_out_with_its_steps(
    path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """The polls of many steps share what one step had, and polls that are rare all stay."""
    monkeypatch.setattr(metrics, "MOST_STEPS", 8)
    file = MetricsFile(path, None)
    most = 0
    for step in range(1, 201):
        for _ in range(2 if step % every == 0 else 0):
            file.record(step, 0, {"accuracy": 0.0}, is_poll=True)
        file.record(step, 0, {"loss": 0.0}, is_poll=False)
        file.flush()
        most = max(most, len(places_of(path)))
    assert most < 8 * 12
    if every == 20:
        polled = [step for step, _, is_poll in places_of(path) if is_poll]
        assert polled == [step for step in range(20, 201, 20) for _ in range(2)]


@pytest.mark.parametrize("lines", [1_000, 100_000])
def test_resume_reads_only_the_end(path: Path, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a resume reads of the file depends on what it removes, not on the file's length."""
    line = b'{"step": 1, "epoch": 0, "poll": false, "metrics": {}}\n'
    path.write_bytes(line * lines)
    with path.open("ab") as file:
        file.write(line.replace(b"1", b"9", 1) * 10)
    read = []

    def counted(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        for item in lines_from_end(file):
            read.append(item)
            yield item

    monkeypatch.setattr(metrics, "lines_from_end", counted)
    MetricsFile(path, 2).resume(5, 0)
    assert len(read) == 11
    assert path.stat().st_size == len(line) * lines


def test_lines_of_a_run_that_goes_back_are_thinned_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed before the place where lines became fewer, it ends with the same lines."""
    monkeypatch.setattr(metrics, "MOST_STEPS", 8)
    write(path, *((step, 0, False) for step in range(1, 12)))
    file = MetricsFile(path, 2)
    file.resume(5, 0)
    for step in range(6, 14):
        file.record(step, 0, {"loss": 0.0}, is_poll=False)
        file.flush()
    assert [step for step, _, _ in places_of(path)] == [2, 4, 6, 8, 10, 12]


def test_fast_loop_has_fewer_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many steps come between two flushes, from then on every second has a line, or fewer."""
    monkeypatch.setattr(metrics, "MOST_AT_ONCE", 10)
    file = MetricsFile(path, None)
    for step in range(1, 101):
        file.record(step, 0, {"loss": 0.0}, is_poll=False)
        if step % 25 == 0:
            file.flush()
    steps = [step for step, _, _ in places_of(path)]
    assert steps == [*range(1, 26), *range(28, 51, 4), *range(52, 101, 4)]


def test_strides_are_powers_of_two() -> None:
    """Each time a run has become twice as long, every second line goes."""
    most = metrics.MOST_STEPS
    steps = [0, 1, most, most + 1, 2 * most, 2 * most + 1, 4 * most + 1, 8 * most + 1]
    assert [stride_at(step) for step in steps] == [1, 1, 1, 2, 2, 4, 8, 16]


def test_file_that_cannot_be_written_does_not_end_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once, and the steps are not kept for later."""
    file = MetricsFile(tmp_path / "missing" / "metrics.jsonl", None)
    for step in range(3):
        file.record(step, 0, {"loss": 0.0}, is_poll=False)
        file.flush()
    assert capsys.readouterr().err.count("cannot write") == 1


def test_interrupted_run_has_the_lines_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped and resumed twice, each step has its one line, with the same values."""
    assert Training().run(tmp_path / "whole")
    for cut in (5, 14):
        training = Training()
        assert not training.run(
            tmp_path / "cut",
            lambda session, place, at=cut: place == "step" and session.global_step == at,
        )
    assert Training().run(tmp_path / "cut")
    whole, cut_up = (lines_of(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    for line in whole + cut_up:
        del line["time"]
    assert cut_up == whole
    assert [line["step"] for line in whole if not line["poll"]] == list(range(1, 19))
    assert [line["step"] for line in whole if line["poll"]] == [6, 12, 18]


def test_running_total_has_the_value_of_each_step(tmp_path: Path) -> None:
    """A tensor that the loop goes on adding to has the value of each step in that step's line."""
    total = torch.zeros(())
    with Session(run_dir=tmp_path, model=torch.nn.Linear(1, 1)) as session:
        for _ in session.steps(4):
            total += 1
            session.step(total=total)
    totals = [line["metrics"]["total"] for line in lines_of(tmp_path / "metrics.jsonl")]
    assert totals == [1.0, 2.0, 3.0, 4.0]


def test_run_without_checkpoints_begins_a_new_file(tmp_path: Path) -> None:
    """A run that has no checkpoint left starts its metrics over."""
    write(tmp_path / "metrics.jsonl", (1, 0, False), (2, 0, False))
    with Session(run_dir=tmp_path, model=torch.nn.Linear(1, 1)) as session:
        session.step(loss=1.0)
    assert places_of(tmp_path / "metrics.jsonl") == [(1, 0, False)]
