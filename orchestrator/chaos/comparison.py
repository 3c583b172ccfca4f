"""Compares runs with the undisturbed one, and says what differs between two undisturbed runs."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from orchestrator.chaos.final_state import differences
from orchestrator.chaos.injector import TrialTiming
from orchestrator.chaos.result import TrialResult
from orchestrator.chaos.step_history import Divergence, History
from orchestrator.errors import ConfigError

SHOWN_DIFFERENCES = 3
DELAY_SHARE = 0.1
# A run in which nothing happens for longer than this is lost.
MIN_PATIENCE_SECONDS = 120.0
PATIENCE_RUNS = 10.0
# A rank that is stopped is noticed in seconds, and a step that is slow for once is not.
MIN_HANG_SECONDS = 5.0
HANG_SILENCES = 5.0
# Unseeded random streams and the script's own plain values may differ as long as weights agree.
# The digests in a rank's part are those of its objects, some of which keep what may differ.
_MAY_DIFFER = ("rng", "state", "data.epoch_rng", "rng_state.pth", "digests")
_PART = re.compile(r"rank-\d{5}\.pt\.")
# What an environment or a buffer holds that the session keeps may differ likewise.
_KEPT = "_state_dict.__kept__."


@dataclass(frozen=True)
class Reference:
    """An undisturbed run, and the metrics and entries that differ without any fault."""

    history: History
    content: dict[str, str]
    timing: TrialTiming
    volatile_metrics: frozenset[str]
    volatile_entries: frozenset[str]

    @classmethod
    def of(cls, first: TrialResult, second: TrialResult) -> "Reference":
        """Make the reference from two undisturbed runs.

        Raises ConfigError when they differ in what must be compared.
        """
        metrics = first.history.differing_metrics(second.history)
        entries = differences(first.content, second.content)
        if decisive := [path for path in entries if not _may_differ(path, metrics)]:
            raise ConfigError(
                "cannot judge this script: two runs of it without any fault end differently "
                f"({_some_of(decisive)}); make it deterministic first: seed every generator, see "
                "torch.use_deterministic_algorithms()"
            )
        return cls(
            history=second.history,
            content=second.content,
            timing=TrialTiming(
                launch_seconds=second.launch_seconds,
                delay_seconds=DELAY_SHARE * (second.seconds - second.launch_seconds),
                patience_seconds=max(MIN_PATIENCE_SECONDS, PATIENCE_RUNS * second.seconds),
                hang_seconds=max(
                    MIN_HANG_SECONDS, HANG_SILENCES * second.history.longest_silence_seconds
                ),
            ),
            volatile_metrics=frozenset(metrics),
            volatile_entries=frozenset(entries),
        )

    @property
    def volatile(self) -> list[str]:
        """The names of the metrics, streams, plain and kept values that are not compared."""
        return sorted(self.volatile_metrics | {*map(_shortened, self.volatile_entries)})

    def divergences(self, result: TrialResult) -> list[Divergence]:
        """Return the differences between a run and this one, in the order of time."""
        found = list(self.history.divergences(result.history, self.volatile_metrics))
        if found:
            return found
        differing = {*differences(self.content, result.content)} - self.volatile_entries
        if differing:
            text = f"the final state differs: {_some_of(sorted(differing))}"
            return [Divergence(result.ended, text)]
        return []


def check_undisturbed(result: TrialResult) -> TrialResult:
    """Return the result of a run without faults. Raises ConfigError if it cannot be compared."""
    if result.problem is not None:
        raise ConfigError(
            f"cannot begin: without any fault {result.problem}; try the same command with "
            "`orchestrator run`, and fix that first"
        )
    if not result.history.steps:
        raise ConfigError(
            "cannot judge this command: it never called session.step(); train with "
            "`from orchestrator import Session`, or with the callback for a framework, as the "
            "README shows"
        )
    return result


def _may_differ(path: str, volatile_metrics: Collection[str]) -> bool:
    """Return whether an entry need not agree: an unseeded stream, the time of day."""
    own = _PART.sub("", path, count=1)
    is_allowed = any(own == part or own.startswith(f"{part}.") for part in _MAY_DIFFER)
    return is_allowed or _KEPT in path or path in volatile_metrics


def _shortened(path: str) -> str:
    """Return the name under which a value is shown: a stream's is that of all its entries."""
    if _KEPT in path:
        return path
    own = _PART.sub("", path, count=1)
    return path.removesuffix(own) + ".".join(own.split(".")[:2])


def _some_of(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN_DIFFERENCES} more" if len(paths) > SHOWN_DIFFERENCES else ""
    return ", ".join(paths[:SHOWN_DIFFERENCES]) + more
