"""What people read when a run has stopped on request: what is saved, and what to do now."""

from dataclasses import dataclass

AGAIN_TO_RESUME = "run the same command again to resume"
AGAIN_FROM_START = "run the same command again; it begins from the start"
READS_NOTHING = "the script does not read its checkpoints"
NO_SESSION = (
    "the command has opened no Session: nothing was saved, and the same command begins from the "
    "start"
)
HOW_TO_SAVE = (
    "a script is saved through a Session (docs/tutorials/make-your-script-resumable.md), or by "
    "itself with --adopt (docs/how-to/adopt-a-script.md)"
)


@dataclass(frozen=True)
class Stop:
    """How a stop ended.

    ``path`` and ``step`` are those of the newest checkpoint; None where there is none.
    ``lost_steps`` counts completed steps that no checkpoint holds; None if unknown. ``problem``
    says why the last save failed. ``shows_saves``: whether a session was opened, or the script
    saves by itself with --adopt. ``begins_anew``: whether the script has been offered a checkpoint
    and has not read it.
    """

    is_saved: bool
    step: int | None = None
    path: str | None = None
    lost_steps: int | None = None
    problem: str | None = None
    shows_saves: bool = True
    begins_anew: bool = False

    @property
    def lines(self) -> list[str]:
        """The sentence, and below it why steps were lost, or how a script is saved."""
        if not self.shows_saves and self.path is None:
            return [f"stopped; {NO_SESSION}", HOW_TO_SAVE]
        if not self.is_saved:
            now = AGAIN_FROM_START
            if self.path is not None and not self.begins_anew:
                now = f"{AGAIN_TO_RESUME} from step {self.step}, {self.path}"
            sentence = f"stopped, but {last_steps_are(self.lost_steps)} not saved; {now}"
            return [sentence, self.problem] if self.problem else [sentence]
        if self.path is None:
            nothing = "stopped before the first step: there was nothing to save"
            return [f"{nothing}; {AGAIN_FROM_START}"]
        now = f"{READS_NOTHING}: {AGAIN_FROM_START}" if self.begins_anew else AGAIN_TO_RESUME
        return [f"stopped at step {self.step}, saved in {self.path}; {now}"]


def last_steps_are(count: int | None) -> str:
    """Return the subject and the verb of a sentence about lost steps; None if unknown."""
    match count:
        case None:
            return "the last steps are"
        case 1:
            return "the last step is"
    return f"the last {count} steps are"
