"""What the script does when nothing disturbs it, and what of that is the same each time."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from orchestrator.chaos.final_state import differences
from orchestrator.chaos.history import Divergence, History
from orchestrator.chaos.outcome import Result
from orchestrator.chaos.trial import Pace
from orchestrator.errors import ConfigError

SHOWN_DIFFERENCES = 3
LATER_SHARE = 0.1
# Nothing happens for longer than this only where something hangs.
LEAST_PATIENCE_SECONDS = 120.0
PATIENCE_RUNS = 10.0
# As long as the weights agree: streams that the script does not seed, and its own plain values.
_DECIDES_NOTHING = {"rng", "state"}


@dataclass(frozen=True)
class Reference:
    """An undisturbed run, and what differs from run to run by itself."""

    history: History
    content: dict[str, str]
    pace: Pace
    volatile_metrics: frozenset[str]
    volatile_entries: frozenset[str]

    @classmethod
    def of(cls, run: Callable[[int | None], Result]) -> "Reference":
        """Run the script twice: ``run`` is given the steps that the run has, once that is known.

        Raises ConfigError where nothing could be compared with that.
        """
        first = _sound(run(None))
        second = _sound(run(first.history.steps))
        metrics = first.history.metrics_unlike(second.history)
        unlike = differences(first.content, second.content)
        if decisive := [path for path in unlike if not _may_differ(path, metrics)]:
            raise ConfigError(
                "cannot judge this script: two runs of it that nobody disturbed end differently "
                f"({_shown(decisive)}); make it deterministic first: seed every generator, see "
                "torch.use_deterministic_algorithms()"
            )
        return cls(
            history=second.history,
            content=second.content,
            pace=Pace(
                launch_seconds=second.launch_seconds,
                later_seconds=LATER_SHARE * (second.seconds - second.launch_seconds),
                patience_seconds=max(LEAST_PATIENCE_SECONDS, PATIENCE_RUNS * second.seconds),
            ),
            volatile_metrics=frozenset(metrics),
            volatile_entries=frozenset(unlike),
        )

    @property
    def volatile(self) -> list[str]:
        """The names of what is not compared: metrics, random streams, plain values."""
        streams = {".".join(path.split(".")[:2]) for path in self.volatile_entries}
        return sorted(self.volatile_metrics | streams)

    def divergence(self, result: Result) -> Divergence | None:
        """The first thing in which a run is not this one."""
        found = self.history.divergence(result.history, self.volatile_metrics)
        if found is not None:
            return found
        unlike = {*differences(self.content, result.content)} - self.volatile_entries
        if unlike:
            return Divergence(result.ended, f"the final state differs: {_shown(sorted(unlike))}")
        return None


def _sound(result: Result) -> Result:
    if result.problem is not None:
        raise ConfigError(
            f"cannot begin: without any fault {result.problem}; see what `orchestrator run` with "
            "the same command says"
        )
    if not result.history.steps:
        raise ConfigError(
            "cannot judge this command: nothing in it has made a step of a Session; see "
            "`orchestrator.training.Session` in the README"
        )
    return result


def _may_differ(path: str, volatile_metrics: Collection[str]) -> bool:
    """Whether the entry decides nothing: a stream that nobody draws from, the time of day."""
    return path.partition(".")[0] in _DECIDES_NOTHING or path in volatile_metrics


def _shown(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN_DIFFERENCES} more" if len(paths) > SHOWN_DIFFERENCES else ""
    return ", ".join(paths[:SHOWN_DIFFERENCES]) + more
