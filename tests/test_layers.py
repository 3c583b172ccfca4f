"""The shape of the package: imports point downwards, each third-party package has one home."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "orchestrator"
MODULES = sorted(PACKAGE.rglob("*.py"))

HOMES = {
    "torch": ("training/", "integrations/"),
    "lightning": ("integrations/lightning.py", "integrations/lightning_loop.py"),
    "transformers": ("integrations/transformers.py",),
    "tenacity": ("supervisor/restarts.py", "training/saving.py"),
    "psutil": ("supervisor/processes.py", "supervisor/battery.py", "memory.py"),
    "rich": ("commands.py", "tables.py", "chaos/shown.py"),
    "xxhash": ("checkpoint/reading.py", "training/digests.py"),
    "dbus_fast": ("supervisor/logind.py",),
    "structlog": ("logs.py", "launch.py", "supervisor/"),
    "safetensors": ("training/safetensors.py",),
    "watchdog": ("supervisor/notices.py", "supervisor/changes.py"),
}
# A path's own rename, and shutil's; Disk's is the one that is allowed.
MOVE = re.compile(r"shutil\.move|(?<!disk)\.rename\(")
# A module may import from those of lower rank, and from its own folder.
RANKS = {
    "exitcodes": 0,
    "pulse": 0,
    "errors": 1,
    "outlet": 0,
    "requirements": 2,
    "capabilities": 0,
    "screen": 1,
    "console": 2,
    "quantities": 0,
    "stopsignals": 0,
    "logs": 2,
    "durable": 1,
    "memory": 2,
    "priority": 1,
    "page": 2,
    "breakpoints": 2,
    "wire": 2,
    "journal": 2,
    "rundir": 3,
    "adopt": 3,
    "runlock": 4,
    "forking": 1,
    "tracking": 4,
    "spare": 3,
    "checkpoint": 4,
    "config": 5,
    "systemd": 5,
    "slurm": 5,
    "listing": 5,
    "tables": 5,
    "integrations": 7,
    "supervisor": 6,
    "training": 6,
    "chaos": 7,
    "contact": 7,
    "doctor": 8,
    "attach": 8,
    "commands": 8,
    "detach": 8,
    "transfer": 8,
    "launch": 9,
    "slurm_script": 10,
    "systemd_unit": 10,
    "cli": 11,
    "__main__": 12,
}


def name_of(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def imports_of(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            # `from orchestrator import logs` imports a module too.
            names |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name in RANKS}
    return names


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_third_party_packages_stay_at_home(module: Path) -> None:
    """A third-party package is imported only where it belongs."""
    for package in {name.split(".")[0] for name in imports_of(module)} & HOMES.keys():
        assert name_of(module).startswith(HOMES[package]), package


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_point_downwards(module: Path) -> None:
    """No module imports from a layer above it, nor supervisor and training from each other."""
    own = name_of(module).removesuffix(".py").split("/")[0]
    for name in imports_of(module):
        package, _, rest = name.partition(".")
        layer = rest.split(".")[0]
        if package == "orchestrator" and layer and layer != own:
            assert RANKS[layer] < RANKS[own], name


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_only_durable_syncs_and_renames(module: Path) -> None:
    """Fsync and rename appear in durable.py alone."""
    calls = {
        node.attr
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    if name_of(module) != "durable.py":
        assert not calls & {"fsync", "fdatasync", "rename", "renames", "replace"}
        assert not MOVE.search(module.read_text())


def test_supervisor_does_not_load_torch() -> None:
    """Importing the command line and the supervisor loads neither torch nor NumPy."""
    code = (
        "import sys, orchestrator.cli, orchestrator.supervisor.supervisor\n"
        "sys.exit(sorted({'torch', 'numpy'} & sys.modules.keys()) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
