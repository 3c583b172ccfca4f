"""What people read when a run has stopped."""

from orchestrator.telemetry.stop_text import Stop

PROBLEM = "cannot save the checkpoint of step 9: No space left on device; free some space"


def test_saved_stop_names_the_checkpoint() -> None:
    """The step, the checkpoint and the next step are in one line."""
    assert Stop(is_saved=True, step=7, path="runs/a/step-7").lines == [
        "stopped at step 7, saved in runs/a/step-7; run the same command again to resume"
    ]


def test_stop_without_a_save_says_why_and_where_the_run_goes_on() -> None:
    """What refused the save is named, and the step from which the next attempt begins."""
    stop = Stop(is_saved=False, step=7, path="runs/a/step-7", lost_steps=2, problem=PROBLEM)
    assert stop.lines == [
        "stopped, but the last 2 steps are not saved; run the same command again to resume from "
        "step 7, runs/a/step-7",
        PROBLEM,
    ]


def test_stop_without_any_checkpoint_begins_from_the_start() -> None:
    """There is nothing to resume, and the text does not say so; nothing is called None."""
    (line,) = Stop(is_saved=False, lost_steps=1).lines
    assert line == (
        "stopped, but the last step is not saved; run the same command again; it begins from the "
        "start"
    )


def test_stop_before_the_first_step() -> None:
    """A session that has done no step has nothing to save."""
    (line,) = Stop(is_saved=True).lines
    assert line.startswith("stopped before the first step: there was nothing to save; ")


def test_stop_of_a_script_without_a_session_does_not_speak_of_steps() -> None:
    """A script may have trained for hours without a Session: it is told how to be saved."""
    for is_saved in (True, False):
        line, how = Stop(is_saved=is_saved, shows_saves=False).lines
        assert line.startswith("stopped; the command has opened no Session: nothing was saved")
        assert "step" not in line
        assert "through a Session" in how


def test_stop_of_a_script_that_reads_nothing_promises_no_resume() -> None:
    """A script that has not read what it was offered begins from the start, saved or not."""
    path = "runs/a/step-7"
    for is_saved in (True, False):
        (line,) = Stop(is_saved=is_saved, step=7, path=path, begins_anew=True).lines
        assert "run the same command again; it begins from the start" in line
        assert "resume" not in line
        assert (f"saved in {path}" in line) == is_saved
