"""What the script does when nothing disturbs it, and what of that is the same each time."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.chaos.final_state import differences
from orchestrator.chaos.history import Divergence, History
from orchestrator.chaos.trial import Result
from orchestrator.errors import ConfigError

SHOWN_DIFFERENCES = 3


@dataclass(frozen=True)
class Reference:
    """An undisturbed run; ``volatile`` metrics differ from run to run by themselves."""

    history: History
    content: dict[str, str]
    seconds: float
    launch_seconds: float
    volatile: frozenset[str]

    @classmethod
    def of(cls, run: Callable[[], Result]) -> "Reference":
        """Run the script twice. Raises ConfigError where nothing could be compared with that."""
        first, second = run(), run()
        for result in (first, second):
            if result.problem is not None:
                raise ConfigError(
                    f"cannot begin: without any fault {result.problem}; see what "
                    "`orchestrator run` with the same command says"
                )
            if not result.history.steps:
                raise ConfigError(
                    "cannot judge this command: nothing in it has made a step of a Session; "
                    "see `orchestrator.training.Session` in the README"
                )
        reference = cls(
            history=second.history,
            content=second.content,
            seconds=second.seconds,
            launch_seconds=second.launch_seconds,
            volatile=frozenset(first.history.metrics_unlike(second.history)),
        )
        if unlike := reference.unlike(first.content):
            raise ConfigError(
                "cannot judge this script: two runs of it that nobody disturbed end differently "
                f"({_shown(unlike)}); make it deterministic first: seed every generator, see "
                "torch.use_deterministic_algorithms()"
            )
        return reference

    def unlike(self, content: dict[str, str]) -> list[str]:
        """What of a final state is not as here, by name; volatile metrics are passed over."""
        return [path for path in differences(self.content, content) if path not in self.volatile]

    def divergence(self, result: Result) -> Divergence | None:
        """The first thing in which a run is not this one."""
        if (found := self.history.divergence(result.history, self.volatile)) is not None:
            return found
        if unlike := self.unlike(result.content):
            return Divergence(result.ended, f"the final state differs: {_shown(unlike)}")
        return None


def _shown(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN_DIFFERENCES} more" if len(paths) > SHOWN_DIFFERENCES else ""
    return ", ".join(paths[:SHOWN_DIFFERENCES]) + more
