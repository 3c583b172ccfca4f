"""The record of an exception."""

import json

from orchestrator.training.exits import MOST_CAUSES, describe


class OddError(Exception):
    errno = object()


def test_description_of_an_exception() -> None:
    """Type, bases, place and causes, by which the supervisor tells kinds of failures."""
    try:
        try:
            raise FileNotFoundError(2, "No such file")
        except FileNotFoundError as error:
            raise OddError("cannot begin") from error
    except OddError as error:
        description = describe(error)
    assert description is not None
    assert (description["type"], description["message"]) == ("OddError", "cannot begin")
    assert description["bases"] == ["Exception", "BaseException", "object"]
    assert description["frame"].endswith("test_description_of_an_exception")
    assert description["cause"]["errno"] == 2
    assert "OSError" in description["cause"]["bases"]
    assert description["cause"]["cause"] is None
    json.dumps(description)


def test_exception_that_is_its_own_cause_is_described() -> None:
    """Causes are followed so far and no further."""
    error = ValueError("circular")
    error.__cause__ = error
    description, causes = describe(error), 0
    while description is not None:
        description, causes = description["cause"], causes + 1
    assert causes == MOST_CAUSES + 1


def test_exit_and_interrupt_are_not_described() -> None:
    """sys.exit() and Ctrl-C leave no error.json."""
    assert describe(SystemExit(1)) is None
    assert describe(KeyboardInterrupt()) is None
