"""Known defects: tests that describe what is right and do not pass yet.

They stand in known_defects.txt, one node id a line. They run, and show as xfailed or xpassed:
whoever mends a defect removes its line. A test that is not listed must pass.
"""

from pathlib import Path

import pytest

KNOWN_DEFECTS = frozenset(Path(__file__).with_name("known_defects.txt").read_text().splitlines())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid in KNOWN_DEFECTS:
            item.add_marker(
                pytest.mark.xfail(strict=False, reason="a known defect, not mended yet")
            )
