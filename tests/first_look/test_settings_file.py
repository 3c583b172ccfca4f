"""The settings that a look writes into orchestrator.toml."""

import os
from pathlib import Path

import pytest

from orchestrator.config import Config
from orchestrator.errors import ConfigError
from orchestrator.first_look.settings_file import write_settings
from tests.support import NOBODY

SETTINGS = {"adopt": "out/it's_*.pt", "resume_arg": "--resume {path}"}


def assert_in_use(directory: Path) -> Config:
    config = Config.resolve({}, {}, directory)
    assert config.adopt is not None
    assert config.adopt.text == SETTINGS["adopt"]
    assert config.resume_arg.template == ("--resume", "{path}")
    return config


def test_new_file_has_the_settings(tmp_path: Path) -> None:
    """Where there is no file, one is made, and a run uses what it says."""
    assert write_settings(SETTINGS, tmp_path) == tmp_path / "orchestrator.toml"
    assert_in_use(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "# mine\nkeep = 5  # five\n",
        "keep = 5  # mine",
        "# mine\nresume-arg = '--old {path}'\nadopt = 'old.pt'\nkeep = 5\n",
        "keep = 5 # mine\n  adopt='old'\n",
    ],
)
def test_other_lines_stay(tmp_path: Path, text: str) -> None:
    """Settings are replaced or added; comments and other settings stay."""
    file = tmp_path / "orchestrator.toml"
    file.write_text(text)
    write_settings(SETTINGS, tmp_path)
    assert assert_in_use(tmp_path).keep == 5
    assert "mine" in file.read_text()
    assert "old" not in file.read_text()


def test_lines_become_a_list(tmp_path: Path) -> None:
    """Files that are saved together have a pattern each."""
    write_settings({"adopt": "g_*.pt\nd_*.pt"}, tmp_path)
    config = Config.resolve({}, {}, tmp_path)
    assert config.adopt is not None
    assert [pattern.text for pattern in config.adopt.patterns] == ["g_*.pt", "d_*.pt"]


def test_setting_that_was_not_found_stays(tmp_path: Path) -> None:
    """A look that finds no resume argument leaves the one that a person has written."""
    (tmp_path / "orchestrator.toml").write_text("resume_arg = '--resume {path}'\n")
    write_settings({"adopt": SETTINGS["adopt"]}, tmp_path)
    assert_in_use(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "adopt = '''\nold\n'''\n",
        "'adopt' = 'old'\n",
        "keep = = 5\n",
        "on_event = '''\nadopt = 1\n'''\n",
    ],
)
def test_file_that_cannot_be_changed_by_lines_stays(tmp_path: Path, text: str) -> None:
    """It is left as it is, and the message has the lines to write."""
    file = tmp_path / "orchestrator.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"(?s)^cannot .*resume_arg = '--resume \{path\}'"):
        write_settings(SETTINGS, tmp_path)
    assert file.read_text() == text


def test_settings_in_pyproject_are_not_hidden(tmp_path: Path) -> None:
    """A new orchestrator.toml would hide the settings of pyproject.toml, and is not made."""
    (tmp_path / "pyproject.toml").write_text("[tool.orchestrator]\nkeep = 5\n")
    with pytest.raises(ConfigError, match=r"hide the settings of pyproject\.toml"):
        write_settings(SETTINGS, tmp_path)
    assert not (tmp_path / "orchestrator.toml").exists()
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
    write_settings(SETTINGS, tmp_path)
    assert_in_use(tmp_path)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("name", ["orchestrator.toml", "pyproject.toml"])
@pytest.mark.parametrize("case", ["owner", "link", "mode", "FIFO"])
def test_what_a_stranger_puts_there_during_the_look_is_not_taken_over(
    tmp_path: Path, name: str, case: str
) -> None:
    """A file that another user may have written is never made this user's own."""
    path, text = tmp_path / name, "on_event = 'echo'\n"
    path.write_text(text if name == "orchestrator.toml" else f"[tool.orchestrator]\n{text}")
    match case:
        case "owner":
            os.chown(path, NOBODY, NOBODY)
        case "link":
            path.rename(tmp_path / "theirs.toml")
            path.symlink_to("theirs.toml")
            os.lchown(path, NOBODY, NOBODY)
        case "mode":
            path.chmod(0o666)
        case "FIFO":
            path.unlink()
            os.mkfifo(path)
    names = sorted(os.listdir(tmp_path))
    with pytest.raises(ConfigError, match=r"(?s)^cannot .*adopt = "):
        write_settings(SETTINGS, tmp_path)
    assert sorted(os.listdir(tmp_path)) == names
    assert case == "FIFO" or path.read_text().endswith(text)
