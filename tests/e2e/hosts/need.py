"""Programs and rights that a developer's machine may lack, and that CI must have."""

import os
from typing import NoReturn

import pytest

# .ci/run sets it.
REQUIRED = "REQUIRE_HOSTS"


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test, or fail it if REQUIRE_HOSTS says that nothing may be missing."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, but {reason}")
    pytest.skip(reason)
