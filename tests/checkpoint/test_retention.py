"""Which checkpoints stay: a table, and properties that hold for every run."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.checkpoint import PublicationOrder
from orchestrator.checkpoint.retention import (
    BestPolicy,
    Candidate,
    RetentionPolicy,
    names_to_keep,
)


def candidate(step: int, **facts: Any) -> Candidate:
    usual: dict[str, Any] = {"healthy": True, "pinned": False, "metrics": {}}
    return Candidate(name=f"s{step}", order=PublicationOrder(step, 1), **(usual | facts))


def sick(step: int) -> Candidate:
    return candidate(step, healthy=False)


def pinned(step: int) -> Candidate:
    return candidate(step, pinned=True)


def scored(step: int, loss: float, **facts: Any) -> Candidate:
    return candidate(step, metrics={"loss": loss}, **facts)


FIVE = [candidate(step) for step in range(1, 6)]
LOSSES = [scored(1, 0.5), scored(2, 0.1), scored(3, 0.3), scored(4, 0.9), scored(5, 0.8)]
LOWEST = BestPolicy("loss", "min")


@pytest.mark.parametrize(
    ("candidates", "policy", "in_use", "kept"),
    [
        pytest.param([], {}, (), "", id="nothing"),
        pytest.param(FIVE[:1], {}, (), "s1", id="the only one"),
        pytest.param(FIVE, {}, (), "s3 s4 s5", id="three by default"),
        pytest.param(FIVE, {"keep": 2}, (), "s4 s5", id="the newest"),
        pytest.param(FIVE[::-1], {"keep": 2}, (), "s4 s5", id="in any order"),
        pytest.param(FIVE, {"keep": 9}, (), "s1 s2 s3 s4 s5", id="fewer than asked for"),
        pytest.param(FIVE, {"keep": 1}, (), "s4 s5", id="never a single one"),
        pytest.param(FIVE, {"keep": 0}, (), "s4 s5", id="never none"),
        pytest.param(FIVE, {"keep": 2}, {"s1"}, "s1 s4 s5", id="in use"),
        pytest.param(FIVE, {"keep": 2}, {"s9"}, "s4 s5 s9", id="in use elsewhere"),
        pytest.param([pinned(1), *FIVE[1:]], {"keep": 2}, (), "s1 s4 s5", id="pinned"),
        pytest.param([*FIVE[:4], pinned(5)], {"keep": 2}, (), "s4 s5", id="pinned counts"),
        pytest.param(
            [*FIVE[:3], sick(4), sick(5)], {"keep": 2}, (), "s2 s3 s4 s5", id="sick ones do not"
        ),
        pytest.param([sick(1), *FIVE[1:]], {"keep": 2}, (), "s4 s5", id="old sick ones go"),
        pytest.param([sick(1), sick(2)], {"keep": 2}, (), "s1 s2", id="sick ones alone"),
        pytest.param(
            [Candidate(f"s7-{n}", (7, n), True, False, {}) for n in (9, 10, 11)],
            {"keep": 2},
            (),
            "s7-10 s7-11",
            id="sequences are numbers",
        ),
        pytest.param(LOSSES, {"keep": 2, "best": LOWEST}, (), "s2 s4 s5", id="lowest"),
        pytest.param(
            LOSSES, {"keep": 2, "best": BestPolicy("loss", "max", 2)}, (), "s4 s5", id="highest two"
        ),
        pytest.param(
            LOSSES, {"keep": 2, "best": BestPolicy("loss", "min", 2)}, (), "s2 s3 s4 s5", id="two"
        ),
        pytest.param(
            LOSSES, {"keep": 2, "best": BestPolicy("accuracy", "max")}, (), "s4 s5", id="no metric"
        ),
        pytest.param(
            [*FIVE[:2], *LOSSES[2:]], {"keep": 2, "best": LOWEST}, (), "s3 s4 s5", id="some have it"
        ),
        pytest.param(
            [scored(step, 0.5) for step in range(1, 6)],
            {"keep": 2, "best": LOWEST},
            (),
            "s1 s4 s5",
            id="the earlier on a tie",
        ),
        pytest.param(
            [scored(1, -math.inf, healthy=False), *LOSSES[1:]],
            {"keep": 2, "best": LOWEST},
            (),
            "s2 s4 s5",
            id="a sick one is never the best",
        ),
        pytest.param(
            [scored(1, math.nan), scored(2, 0.1), *LOSSES[2:]],
            {"keep": 2, "best": LOWEST},
            (),
            "s2 s4 s5",
            id="NaN is never the lowest",
        ),
        pytest.param(
            [scored(1, 0.9), scored(2, math.nan), scored(3, 0.1), *FIVE[3:]],
            {"keep": 2, "best": BestPolicy("loss", "max")},
            (),
            "s1 s4 s5",
            id="NaN is never the highest",
        ),
    ],
)
def test_names_to_keep(
    candidates: list[Candidate], policy: dict[str, Any], in_use: set[str], kept: str
) -> None:
    """One row of the table: of these candidates, this policy keeps these names."""
    assert names_to_keep(candidates, RetentionPolicy(**policy), in_use) == set(kept.split())


RUNS = st.lists(
    st.builds(
        lambda step, healthy, is_pinned, loss: Candidate(
            f"s{step}",
            PublicationOrder(step, 1),
            healthy,
            is_pinned,
            {} if loss is None else {"loss": loss},
        ),
        st.integers(0, 50),
        st.booleans(),
        st.booleans(),
        # Few values, so that ties and NaN are frequent.
        st.sampled_from([None, math.nan, math.inf, -math.inf, 0.1, 0.2, 0.3]),
    ),
    max_size=20,
    unique_by=lambda made: made.name,
)
POLICIES = st.builds(
    RetentionPolicy,
    keep=st.integers(-1, 6),
    best=st.none()
    | st.builds(
        BestPolicy, st.just("loss"), mode=st.sampled_from(["min", "max"]), count=st.integers(1, 4)
    ),
)


def healthy_of(candidates: list[Candidate]) -> list[Candidate]:
    return sorted((c for c in candidates if c.healthy), key=lambda c: c.order)


@given(RUNS, POLICIES)
def test_two_newest_healthy_checkpoints_always_stay(
    candidates: list[Candidate], policy: RetentionPolicy
) -> None:
    """The newest two that a run can resume from stay, whatever the policy says."""
    kept = names_to_keep(candidates, policy)
    assert {c.name for c in healthy_of(candidates)[-2:]} <= kept


@given(RUNS, POLICIES, st.sets(st.sampled_from([f"s{step}" for step in range(50)])))
def test_pinned_and_used_checkpoints_always_stay(
    candidates: list[Candidate], policy: RetentionPolicy, in_use: set[str]
) -> None:
    """A pinned checkpoint, and one that a process reads, is never deleted."""
    kept = names_to_keep(candidates, policy, in_use)
    assert in_use <= kept
    assert {c.name for c in candidates if c.pinned} <= kept


@given(RUNS, POLICIES)
def test_unhealthy_checkpoints_push_out_no_healthy_one(
    candidates: list[Candidate], policy: RetentionPolicy
) -> None:
    """Non-finite checkpoints do not change which of the healthy ones stay."""
    healthy = healthy_of(candidates)
    alone = names_to_keep(healthy, policy)
    assert names_to_keep(candidates, policy) & {c.name for c in healthy} == alone


@given(RUNS, POLICIES)
def test_best_checkpoints_always_stay(candidates: list[Candidate], policy: RetentionPolicy) -> None:
    """No healthy checkpoint that is deleted has a better value than those kept for their value."""
    best = policy.best
    if best is None:
        return
    kept = names_to_keep(candidates, policy)
    values = sorted(
        (c.metrics["loss"] for c in candidates if c.healthy and not math.isnan(loss_of(c))),
        reverse=best.mode == "max",
    )
    for value in set(values[: best.count]):
        assert any(loss_of(c) == value for c in candidates if c.healthy and c.name in kept)


def loss_of(made: Candidate) -> float:
    return made.metrics.get("loss", math.nan)


@given(RUNS, POLICIES)
def test_retention_keeps_no_more_healthy_checkpoints_than_asked(
    candidates: list[Candidate], policy: RetentionPolicy
) -> None:
    """The number of healthy checkpoints that stay is bounded by the policy."""
    kept = names_to_keep(candidates, policy)
    asked_for = max(policy.keep, 2) + (policy.best.count if policy.best else 0)
    assert sum(c.name in kept for c in candidates if c.healthy and not c.pinned) <= asked_for


@given(RUNS, POLICIES)
def test_second_retention_deletes_nothing(
    candidates: list[Candidate], policy: RetentionPolicy
) -> None:
    """After a deletion the same policy deletes nothing more."""
    kept = names_to_keep(candidates, policy)
    assert names_to_keep([c for c in candidates if c.name in kept], policy) == kept
