"""The package that is published: its page on the index, and the versions it works with.

The versions that CI installs are among them.
"""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RELATIVE = re.compile(
    r'\]\((?!https?://)|(?:src|href|srcset)="(?!https?://)|^\[[^\]]+\]:\s*(?!https?://)', re.M
)
PIN = re.compile(r"^([\w.-]+)==(\S+)", re.M)


def test_the_page_on_the_index_has_no_relative_links() -> None:
    """The README on the index has no link or picture that is only found in the repository."""
    text = (ROOT / "README.md").read_text()
    for rule in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"][
        "substitutions"
    ]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert [text[found.start() - 40 : found.end() + 40] for found in RELATIVE.finditer(text)] == []
    assert "docs/" in text  # the paths stay, for readers of the source distribution


def test_the_compatibility_page_has_the_bounds() -> None:
    """The oldest version of each package on the page is the one that pip accepts."""
    page = (ROOT / "docs" / "reference" / "compatibility.md").read_text()
    project = PYPROJECT["project"]
    bounds = project["dependencies"] + project["optional-dependencies"]["integrations"]
    rows = re.findall(r"^\| ([a-z0-9]+) \| ([\d.]+) \|", page, re.M)
    assert sorted(f"{name}>={oldest}" for name, oldest in rows) == sorted(bounds)


def test_the_lock_has_the_versions_of_the_constraints() -> None:
    """requirements.lock was written from constraints.txt as it is; else run `make lock`."""
    pins, locked = (
        {_plain(name): version for name, version in PIN.findall((ROOT / file).read_text())}
        for file in ("constraints.txt", "requirements.lock")
    )
    # What torch needs on a machine with CUDA is in the lock alone.
    assert pins.items() <= locked.items()


def test_every_version_in_the_lock_has_a_hash() -> None:
    """Each version is followed by the hashes of its files."""
    for line, following in pairwise((ROOT / "requirements.lock").read_text().splitlines()):
        assert not PIN.match(line) or following.startswith("    --hash=sha256:")


def test_what_builds_the_package_is_pinned() -> None:
    """constraints.txt has a version of each package that pyproject.toml needs for a build."""
    pins = {_plain(name) for name, _ in PIN.findall((ROOT / "constraints.txt").read_text())}
    for requirement in [*PYPROJECT["build-system"]["requires"], "editables"]:
        assert requirement.partition(">")[0] in pins


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
