"""The modules that a trainer reports for the spare."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

PRINT = (
    "import json\nimport orchestrator.training\n"
    "from orchestrator.spare.loaded_modules import loaded_modules\n"
    "print(json.dumps(loaded_modules()))"
)


@pytest.mark.parametrize("words", [["script.py"], ["-m", "package.script"]])
def test_own_modules_are_separated_from_installed_ones(tmp_path: Path, words: list[str]) -> None:
    """Modules of the library count as third-party, those in the script's directory as own."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / "colorsys.py").write_text("import structlog.stdlib")
    for script in (tmp_path / "script.py", package / "script.py"):
        script.write_text(f"import colorsys\n{PRINT}")
    output = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, check=True, text=True
    ).stdout
    names = json.loads(output)
    third_party, own = {*names["third_party"]}, {*names["own"]}
    assert {"logging", "structlog", "structlog.stdlib", "torch.nn"} <= third_party
    # This package counts as third-party even if it is an editable installation.
    assert "orchestrator.spare.loaded_modules" in third_party
    assert own == {"colorsys"} | ({"package"} if "-m" in words else set())
    # The main module is left out, and so are modules of torch that have no file.
    assert not {"__main__", "package.script", "torch.ops"} & (third_party | own)


def test_modules_that_torch_generates_are_not_the_script_s_own(tmp_path: Path) -> None:
    """Modules that torch writes into a temporary folder and imports from there are not listed."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "from torch.distributed.nn.jit import instantiator\n"
        "instantiator.instantiate_non_scriptable_remote_module_template()\n"
        "assert '_remote_module_non_scriptable' in sys.modules\n"
        "torch.optim.Adam(torch.nn.Linear(1, 1).parameters()).step()\n" + PRINT
    )
    output = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, check=True, text=True
    ).stdout
    names = json.loads(output)
    assert names["own"] == []
    assert "_remote_module_non_scriptable" not in names["third_party"]
