"""What a newcomer's machine may lack, and CI must not."""

import os
from typing import NoReturn

import pytest

# .ci/run sets it.
REQUIRED = "REQUIRE_HOSTS"


def lacking(reason: str) -> NoReturn:
    """Skip the test, or fail it where everything was to be there."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, but {reason}")
    pytest.skip(reason)
