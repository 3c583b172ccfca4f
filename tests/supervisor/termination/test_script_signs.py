"""What counts as a sign of life of a script that saves for itself, with a clock moved by hand."""

from pathlib import Path
from typing import Literal

import pytest

from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.attempt.activity import Silence
from orchestrator.supervisor.attempt.attempt import AdoptedProgress, Attempt
from orchestrator.supervisor.attempt.output import OutputTarget
from orchestrator.supervisor.termination.hang_timeouts import (
    LARGEST_MARGIN_SECONDS,
    SAVES_TO_LEARN,
    TICK_SECONDS,
    HangClock,
    HangTimeouts,
)
from orchestrator.supervisor.termination.script_signs import (
    LEAST_CPU_SHARE,
    LEAST_MOVED_BYTES_PER_SECOND,
    LOOK_SECONDS,
    ScriptSigns,
    TreeWatch,
)
from orchestrator.system.process_use import ProcessUse
from orchestrator.terminal.lossy_writer import LossyWriter
from tests.supervisor.support import new_queue

MINUTE = 60.0
HOUR = 3600.0
Setting = float | Literal["auto", "off"]


class Script:
    """A script, its processes and the supervisor's clock, all moved by hand."""

    def __init__(self, root: Path, setting: Setting) -> None:
        self.timeouts = HangTimeouts(setting)
        self.now = 1000.0
        self._queue, self._run = new_queue(root), RunDir(root)
        self._attempts = 0
        self.starts()

    def starts(self) -> None:
        """Begin an attempt."""
        self._attempts += 1
        target = OutputTarget(LossyWriter(1), 1 << 20)
        self._attempt = Attempt(self._run, self._attempts, None, None, self._queue, target)
        self._progress = AdoptedProgress(step=0)
        self._tree = TreeWatch(lambda: self.now)
        self._use = ProcessUse()
        self._signs = ScriptSigns(self._attempt, self._progress, self.timeouts, self._tree)
        self._clock = HangClock(self.timeouts, self._signs.read(), lambda: self.now)

    def prints(self) -> None:
        self._attempt.main.output.copied_bytes += 1

    def changes_a_file(self) -> None:
        self._progress.file_changes += 1

    def saves(self) -> None:
        self._progress.record_save(self._progress.step + 1, after_stop=False)

    def passes(
        self,
        seconds: float,
        cpu_share: float = 0.0,
        moved_per_second: float = 0.0,
        disk_bytes: int = 0,
    ) -> Silence:
        """Let time pass, in which the processes use so much; return the last silence."""
        for tick in range(int(seconds / TICK_SECONDS)):
            self.now += TICK_SECONDS
            self._use = ProcessUse(
                self._use.cpu_seconds + cpu_share * TICK_SECONDS,
                self._use.moved_bytes + int(moved_per_second * TICK_SECONDS),
                self._use.disk_bytes + disk_bytes,
            )
            if tick % LOOK_SECONDS == 0:
                self._tree.note({(1, "1"): self._use})
            silence = self._clock.tick(self._signs.read())
        return silence

    def works(self, silence: float = MINUTE, cpu_share: float = 1.0) -> None:
        """Go through enough rounds to learn from: compute, be silent, save."""
        for _ in range(SAVES_TO_LEARN):
            self.passes(MINUTE, cpu_share)
            self.passes(silence)
            self.saves()
            self.passes(TICK_SECONDS)


@pytest.fixture(params=[10 * MINUTE, "auto"], ids=["by-hand", "auto"])
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Script:
    """Return a script whose timeout is a number, or was learned."""
    script = Script(tmp_path, request.param)
    script.works()
    return script


@pytest.mark.parametrize("sign", ["prints", "changes_a_file", "saves"])
def test_output_and_files_are_signs_of_life(script: Script, sign: str) -> None:
    """Each of them ends a silence, whatever the timeout is made from."""
    assert script.passes(5 * MINUTE).seconds > 0
    getattr(script, sign)()
    assert script.passes(TICK_SECONDS).seconds == 0


@pytest.mark.parametrize(
    ("moved_per_second", "disk_bytes", "lives"),
    [
        (2 * LEAST_MOVED_BYTES_PER_SECOND, 0, True),
        (0, 4096, True),
        (LEAST_MOVED_BYTES_PER_SECOND / 10, 0, False),
        (0, 0, False),
    ],
    ids=["moves-data", "writes-a-log", "heartbeats", "nothing"],
)
def test_io_above_that_of_idle_processes_is_a_sign_of_life(
    script: Script, moved_per_second: float, disk_bytes: int, lives: bool
) -> None:
    """Heartbeats between ranks and polls do not keep a hung script alive."""
    silence = script.passes(HOUR, moved_per_second=moved_per_second, disk_bytes=disk_bytes)
    assert silence.is_hang is not lives


@pytest.mark.parametrize(
    ("setting", "is_hang"), [(10 * MINUTE, True), ("auto", False), ("off", False)]
)
def test_computing_alone_is_a_sign_only_where_the_timeout_is_learned(
    tmp_path: Path, setting: Setting, is_hang: bool
) -> None:
    """A spinning collective exceeds a given timeout; a long evaluation never a learned one."""
    script = Script(tmp_path, setting)
    script.works()
    assert script.passes(5 * HOUR, cpu_share=1.0).is_hang is is_hang


def test_idle_processor_time_is_no_sign(tmp_path: Path) -> None:
    """Threads that only wake up to look do not keep a hung script alive."""
    script = Script(tmp_path, "auto")
    script.works()
    assert script.passes(HOUR, cpu_share=LEAST_CPU_SHARE / 2).is_hang


def test_timeout_is_learned_from_the_longest_silence(tmp_path: Path) -> None:
    """It begins with the third save, and a longer silence raises it by as much."""
    script = Script(tmp_path, "auto")
    for _ in range(SAVES_TO_LEARN - 1):
        script.passes(MINUTE, cpu_share=1.0)
        script.saves()
        assert script.passes(10 * HOUR).timeout_seconds is None
    script.works(silence=2 * MINUTE)
    timeout = script.passes(TICK_SECONDS).timeout_seconds
    assert timeout == pytest.approx(10 * HOUR + LARGEST_MARGIN_SECONDS, abs=2 * LOOK_SECONDS)


def test_next_attempt_knows_what_earlier_ones_have_taught(tmp_path: Path) -> None:
    """It has a timeout from its start."""
    script = Script(tmp_path, "auto")
    script.works()
    script.starts()
    assert script.passes(HOUR).is_hang


def test_work_that_is_done_elsewhere_teaches_nothing(tmp_path: Path) -> None:
    """A command such as ssh or docker run never gets a learned timeout."""
    script = Script(tmp_path, "auto")
    for _ in range(20):
        script.works(cpu_share=0.0)
    assert script.passes(5 * HOUR).timeout_seconds is None


def test_many_saves_between_two_looks_are_one_lesson(tmp_path: Path) -> None:
    """A script that saves each second at its start has not shown its rounds yet."""
    script = Script(tmp_path, "auto")
    script.passes(TICK_SECONDS, cpu_share=1.0)
    for _ in range(5):
        script.saves()
        script.passes(TICK_SECONDS)
    assert script.passes(HOUR).timeout_seconds is None


def test_false_alarm_gets_ten_times_as_long(tmp_path: Path) -> None:
    """A script that was ended for a long quiet phase gets through it the next time."""
    script = Script(tmp_path, "auto")
    script.works()
    hang = script.passes(HOUR)
    assert hang.is_hang
    script.timeouts.record_hang(hang.activity, hang.step)
    script.starts()
    for _ in range(hang.step):
        script.saves()
    assert not script.passes(5 * HOUR).is_hang
