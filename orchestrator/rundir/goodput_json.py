"""Reads a goodput that was stored with the history of a run, and checks every value of it."""

from typing import Any

from orchestrator.rundir.attempt_time import OpenAttempt
from orchestrator.rundir.goodput import Doing, Goodput
from orchestrator.rundir.moments import Moment
from orchestrator.rundir.time_ledger import (
    MOST_STRETCHES,
    RECENT_ATTEMPTS,
    Part,
    Seconds,
    Share,
    Stretch,
    TimeLedger,
)

# Longer than any run; sums of such numbers are still finite.
MOST_SECONDS = 1e15


def checked_goodput(content: Any) -> Goodput:
    """Return the goodput in a JSON object.

    Raises ValueError, TypeError or KeyError for what is no goodput of this version.
    """
    goodput = Goodput(**content)
    goodput.ledger = _ledger(goodput.ledger)
    goodput.doing = Doing(goodput.doing)
    goodput.since = _moment(goodput.since)
    goodput.delay_seconds = _number(goodput.delay_seconds)
    goodput.is_queued = _truth(goodput.is_queued)
    goodput.attempt = None if goodput.attempt is None else _open_attempt(goodput.attempt)
    return goodput


def _ledger(content: Any) -> TimeLedger:
    ledger = TimeLedger(**content)
    ledger.seconds = _seconds(ledger.seconds)
    ledger.shares = [_share(each) for each in ledger.shares][-RECENT_ATTEMPTS:]
    ledger.stretches = [_stretch(each) for each in ledger.stretches][-MOST_STRETCHES:]
    if not ledger.shares:
        raise ValueError("there is no share")
    return ledger


def _share(content: Any) -> Share:
    share = Share(**content)
    share.serial, share.seconds = _count(share.serial), _seconds(share.seconds)
    share.attempt = None if share.attempt is None else _count(share.attempt)
    return share


def _stretch(content: Any) -> Stretch:
    stretch = Stretch(**content)
    first, last = _count(stretch.first_step), _count(stretch.last_step)
    return Stretch(first, max(first, last), _number(stretch.seconds), _count(stretch.serial))


def _open_attempt(content: Any) -> OpenAttempt:
    attempt = OpenAttempt(**content)
    attempt.begun, attempt.last_seen = _moment(attempt.begun), _moment(attempt.last_seen)
    attempt.number = None if attempt.number is None else _count(attempt.number)
    attempt.first_step, attempt.last_step = _count(attempt.first_step), _count(attempt.last_step)
    attempt.starts_as = Part(attempt.starts_as)
    if attempt.starting_seconds is not None:
        attempt.starting_seconds = _number(attempt.starting_seconds)
    attempt.saved = None if attempt.saved is None else _moment(attempt.saved)
    attempt.saving_seconds = _number(attempt.saving_seconds)
    attempt.is_stopping = _truth(attempt.is_stopping)
    return attempt


def _moment(content: Any) -> Moment:
    moment = Moment(**content)
    if not isinstance(moment.time, str | None):
        raise ValueError("a time has the wrong type")
    uptime = None if moment.uptime is None else _number(moment.uptime)
    return Moment(moment.time, uptime, _number(moment.asleep))


def _seconds(content: Any) -> Seconds:
    return {Part(part): _number(seconds) for part, seconds in dict(content).items()}


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("a truth has the wrong type")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < MOST_SECONDS:
        raise ValueError("a number has the wrong type")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a count has the wrong type")
    return value
