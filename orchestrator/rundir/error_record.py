"""The content of error.json, which the trainer writes and the supervisor judges."""

from typing import Any

LONGEST_NAME = 300
LONGEST_TEXT = 1 << 16
# Each symptom of a failure is searched for from every place in it.
LONGEST_MESSAGE = 1 << 13
MOST_BASES = 50
MOST_CAUSES = 5


def checked_error(content: dict[str, Any], causes: int = MOST_CAUSES) -> dict[str, Any]:
    """Return the keys that have the right types, with texts that are not longer than needed.

    The end of a text says most.
    """
    error: dict[str, Any] = {}
    for key, longest in (
        ("type", LONGEST_NAME),
        ("frame", LONGEST_NAME),
        ("thread", LONGEST_NAME),
        ("time", LONGEST_NAME),
        ("message", LONGEST_MESSAGE),
        ("traceback", LONGEST_TEXT),
    ):
        if isinstance(content.get(key), str):
            error[key] = content[key][-longest:]
    for key in ("errno", "pid"):
        if type(content.get(key)) is int:
            error[key] = content[key]
    if isinstance(content.get("bases"), list):
        bases = content["bases"][:MOST_BASES]
        error["bases"] = [base[:LONGEST_NAME] for base in bases if isinstance(base, str)]
    if isinstance(content.get("cause"), dict) and causes:
        error["cause"] = checked_error(content["cause"], causes - 1)
    return error
