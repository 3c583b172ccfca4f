"""The options of optimizers, as manifests hold them."""

import json

from orchestrator.system.json_input import LARGEST_INTEGER, parse_json
from orchestrator.training.state.options import _plain


def test_integer_that_no_manifest_holds_is_left_out() -> None:
    """A checkpoint with an option that its reader refuses would be lost."""
    group = {"params": [], "lr": 0.5, "seed": LARGEST_INTEGER}
    options = _plain([group | {"big": LARGEST_INTEGER + 1, "bigs": [1 << 80]}])
    assert options == {"lr": 0.5, "seed": LARGEST_INTEGER}
    assert parse_json(json.dumps(options)) == options
