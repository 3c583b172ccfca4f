"""The package that is published: its page on the index, and its pins."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
RELATIVE = re.compile(
    r'\]\((?!https?://)|(?:src|href|srcset)="(?!https?://)|^\[[^\]]+\]:\s*(?!https?://)', re.M
)


def test_the_page_on_the_index_has_no_relative_links() -> None:
    """What becomes of the README has no link or picture that is only found in the repository."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    text = (ROOT / "README.md").read_text()
    for rule in tool["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert [text[found.start() - 40 : found.end() + 40] for found in RELATIVE.finditer(text)] == []
    assert "docs/" in text  # the paths stay, for readers of the source distribution
