"""The test whether a process may be forked."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes

BROKEN = (
    "import sys, types\nsys.modules['torch.cuda'] = types.SimpleNamespace(_is_in_bad_fork={})\n"
)
FORK = "from orchestrator.spare.fork import try_fork\nprint(try_fork())"


@pytest.mark.parametrize(
    ("before", "sound"),
    [
        ("", True),
        ("import torch.cuda", True),
        (BROKEN.format("lambda: True"), False),
        (BROKEN.format("lambda: 1 / 0"), False),
    ],
    ids=["nothing", "torch", "torch has used a GPU", "a question that fails"],
)
def test_try_fork_tells_whether_a_fork_is_usable(before: str, sound: bool) -> None:
    """A process whose fork cannot use torch's devices is not forked."""
    script = f"{before}\n{FORK}"
    result = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60)
    assert result.stdout.decode().split() == [str(sound)]
