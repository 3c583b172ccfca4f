"""The package that is published: its page on the index, and the versions it works with."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RELATIVE = re.compile(
    r'\]\((?!https?://)|(?:src|href|srcset)="(?!https?://)|^\[[^\]]+\]:\s*(?!https?://)', re.M
)


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
    rows = re.findall(r"^\| ([a-z]+) \| ([\d.]+) \|", page, re.M)
    assert sorted(f"{name}>={oldest}" for name, oldest in rows) == sorted(bounds)
