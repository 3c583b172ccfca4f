"""The shape of the package: imports point downwards, each third-party package has one home."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "orchestrator"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up. A room imports from the layers below its own, and from itself.
LAYERS = {
    "": (
        {"exitcodes", "breakpoints"},
        {"errors"},
        {"system"},
        {"terminal", "ipc", "rundir"},
        {"checkpoint"},
        {"snapshot", "adopt", "telemetry", "config_file"},
        {"config"},
        {"spare", "hosts", "client", "pace"},
        {"supervisor", "training"},
        {"integrations"},
        {"doctor", "chaos", "first_look", "run_report"},
        {"cli"},
        {"__main__"},
    ),
    "supervisor": (
        {
            "recovery",
            "signal_handlers",
            "state_machine",
            "stop_request",
            "run_events",
            "lifeline",
            "recent_pace",
        },
        {"checkpoints"},
        {"attempt"},
        {"run_progress"},
        {"run_facts", "at_risk"},
        {
            "termination",
            "judge",
            "adoption",
            "save_requests",
            "session_opening",
            "live_status",
            "stall_watch",
        },
        {"coordinator"},
        {"publishing", "message_handlers", "report"},
        {"outcome", "wiring"},
        {"supervisor"},
    ),
    "training": (
        {"stop"},
        {"exits"},
        {"state"},
        {"data", "formats", "runtime"},
        {"loop"},
        {"saving"},
        {"safe_points"},
        {"agreed_safe_points"},
        {"session", "framework_run"},
    ),
}
HOMES = {
    "torch": ("training/", "integrations/"),
    "lightning": ("integrations/lightning.py", "integrations/lightning_loop.py"),
    "transformers": ("integrations/transformers.py", "integrations/transformers_state.py"),
    "tenacity": ("training/runtime/patient_retry.py",),
    "psutil": (
        "system/process_tree.py",
        "system/memory.py",
        "system/lock_holder.py",
        "hosts/laptop/battery.py",
    ),
    "rich": (
        "cli/view.py",
        "cli/status_table.py",
        "cli/watched_status.py",
        "cli/runs_table.py",
        "cli/checkpoints_table.py",
        "chaos/display.py",
    ),
    "xxhash": (
        "checkpoint/verification.py",
        "checkpoint/digesting_writer.py",
        "training/state/digests.py",
    ),
    "jinja2": ("run_report/page.py",),
    "dbus_fast": ("hosts/laptop/sleep.py",),
    "safetensors": ("training/formats/safetensors.py",),
    "prometheus_client": ("telemetry/prometheus.py",),
    "watchdog": ("hosts/preemption.py", "adopt/directory_watcher.py", "adopt/read_watcher.py"),
}
# They raise for a path that is too long, or in a directory that may not be searched.
ASKING = re.compile(r"(?<!entry)\.(exists|is_file|is_dir|is_symlink)\(\)|Path\.(exists|is_\w+)")
# A path's own rename, and shutil's; Disk's is the one that is allowed.
MOVE = re.compile(r"shutil\.move|(?<!disk)\.rename\(")


def name_of(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def dotted_name_of(module: Path) -> str:
    return ".".join(module.relative_to(PACKAGE.parent).with_suffix("").parts)


NAMES = {dotted_name_of(module).removesuffix(".__init__") for module in MODULES}


@cache
def imports_of(module: Path) -> frozenset[str]:
    """Every module that the source names, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= submodules & NAMES
            if len(submodules - NAMES) > 0:
                names.add(node.module)
    return frozenset(names)


def room(name: str, inside: str) -> str | None:
    """The part of a package that holds a module; None for a module outside of it."""
    parts = name.split(".")
    above = ["orchestrator", *([inside] if inside else [])]
    return parts[len(above)] if parts[: len(above)] == above and len(parts) > len(above) else None


def rank(of: str, inside: str) -> int:
    ranks = {name: rank for rank, layer in enumerate(LAYERS[inside]) for name in layer}
    return ranks[of]


@pytest.mark.parametrize("inside", LAYERS)
@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_point_downwards(module: Path, inside: str) -> None:
    """No module imports from a room of its own layer or above, in the whole and inside packages."""
    own = room(dotted_name_of(module), inside)
    if own is None or own == "__init__":
        return
    for name in imports_of(module):
        other = room(name, inside)
        if other is not None and other != own:
            assert rank(other, inside) < rank(own, inside), name


def test_no_import_circle() -> None:
    """No module imports itself by way of others, imports inside functions included."""
    # The package itself names the session, which it imports on first use.
    names = NAMES - {"orchestrator"}
    graph = {
        dotted_name_of(module).removesuffix(".__init__"): imports_of(module) & names
        for module in MODULES
        if module.parent != PACKAGE or module.stem != "__init__"
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_third_party_packages_stay_at_home(module: Path) -> None:
    """A third-party package is imported only where it belongs."""
    for package in {name.split(".")[0] for name in imports_of(module)} & HOMES.keys():
        assert name_of(module).startswith(HOMES[package]), package


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
    if name_of(module) != "system/durable.py":
        assert not calls & {"fsync", "fdatasync", "rename", "renames", "replace"}
        assert not MOVE.search(module.read_text())


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_what_is_at_a_path_is_asked_without_exceptions(module: Path) -> None:
    """os.path says of every text whether a file is there; a person may write any text."""
    assert not ASKING.search(module.read_text())


# breakpoints imports nothing of the package; the adopted formats bound what they read themselves.
JSON_PARSERS = ("system/json_input.py", "breakpoints/install.py", "adopt/")


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_json_from_outside_has_one_parser(module: Path) -> None:
    """JSON is parsed by parse_json alone, which raises nothing but ValueError."""
    if not name_of(module).startswith(JSON_PARSERS):
        assert not re.search(r"json\.loads?\(", module.read_text())


@pytest.mark.parametrize("inside", LAYERS)
def test_layers_name_what_is_there(inside: str) -> None:
    """Every room of a package has exactly one layer, and every layer names rooms that exist."""
    listed = [name for layer in LAYERS[inside] for name in layer]
    folder = PACKAGE / inside
    there = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert sorted(listed) == sorted(there - {"__init__", "__pycache__"})


def test_supervisor_does_not_load_torch() -> None:
    """The command line and the supervisor load neither torch nor NumPy nor Prometheus' library."""
    code = (
        "import sys, orchestrator.cli.parser, orchestrator.supervisor.supervisor\n"
        "sys.exit(sorted({'torch', 'numpy', 'prometheus_client'} & sys.modules.keys()) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# Units, scripts and what is coloured; their texts are checked where they are made.
PRINTERS = (
    "terminal/printing.py",
    "cli/systemd_unit.py",
    "cli/slurm_script.py",
    "cli/attach.py",
    "cli/detach.py",
    "doctor/run_checks.py",
)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_text_for_people_is_printed_by_one_function(module: Path) -> None:
    """Print is called by print_text alone, which keeps escape sequences from the terminal."""
    if name_of(module) not in PRINTERS:
        assert not re.search(r"^ +print\(", module.read_text(), re.MULTILINE)
