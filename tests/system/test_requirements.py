"""Which versions of other packages are accepted, and what is said about older ones."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.system.requirements import LEAST_VERSIONS, check_torch, too_old

ROOT = Path(__file__).parent.parent.parent
CONSTRAINTS = (ROOT / "constraints.txt").read_text()


def in_another_folder(
    folder: Path, *words: str, status: int, path: Path
) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder`` with ``path`` before the installed packages."""
    result = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


def test_the_table_is_what_pip_installs() -> None:
    """The bounds in pyproject.toml are those that the session and the doctor check."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pairs = [requirement.split(">=") for requirement in project["dependencies"]]
    assert {name: tuple(map(int, least.split("."))) for name, least in pairs} == LEAST_VERSIONS


def test_the_pins_are_new_enough() -> None:
    """constraints.txt has a version of each package that is not too old."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", CONSTRAINTS.lower(), re.M))
    assert [name for name in LEAST_VERSIONS if too_old(name, pins[name])] == []


@pytest.mark.parametrize("version", ["2.7", "2.7.0", "2.7.1+cu126", "2.13.0a0+git1", "3", "main"])
def test_new_enough_torch_is_accepted(version: str) -> None:
    """Release, local and development versions from the bound on; and what has no number."""
    check_torch(version)


@pytest.mark.parametrize("version", ["2.6.0", "2.6.0+cu124", "1.13.1", "2"])
def test_older_torch_is_refused(version: str) -> None:
    """The sentence has what is installed, what is needed and what to do."""
    with pytest.raises(ConfigError) as refused:
        check_torch(version)
    assert f"torch {version}: " in str(refused.value)
    assert "torch 2.7 or newer" in str(refused.value)
    assert "pip install 'torch>=2.7'" in str(refused.value)


@pytest.mark.processes
def test_a_script_with_an_older_torch_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """The import ends the script with 78 before a module of torch is missed; no traceback."""
    (tmp_path / "old" / "torch").mkdir(parents=True)
    (tmp_path / "old" / "torch" / "__init__.py").write_text("__version__ = '2.6.0+cpu'")
    (tmp_path / "train.py").write_text("from orchestrator.training import Session")
    refused = in_another_folder(tmp_path, "train.py", status=78, path=tmp_path / "old")
    assert refused.stderr.startswith("cannot train with torch 2.6.0+cpu: ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.processes
def test_doctor_fails_on_older_packages_and_says_what_to_install(tmp_path: Path) -> None:
    """Both torch and tenacity are named, with what to type."""
    for name, version in [("torch", "2.6.0"), ("tenacity", "8.5.0")]:
        metadata = tmp_path / "old" / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    words = ("-m", "orchestrator", "doctor", "--json")
    page = json.loads(in_another_folder(tmp_path, *words, status=78, path=tmp_path / "old").stdout)
    (finding,) = [finding for finding in page if finding["check"] == "versions"]
    assert finding["level"] == "FAIL"
    assert "torch 2.6.0 is too old, 2.7 or newer is needed" in finding["text"]
    assert finding["advice"] == "pip install 'tenacity>=9' 'torch>=2.7'"
