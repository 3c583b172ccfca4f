"""Settings: where they come from, and what is refused."""

import itertools
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.retention import BestPolicy, RetentionPolicy
from orchestrator.cli.parser import parse
from orchestrator.config import Config, Every
from orchestrator.errors import ConfigError
from orchestrator.system.units import parse_duration

# From the strongest to the weakest.
SOURCES = ("command line", "environment", "orchestrator.toml", "pyproject.toml")


def resolve(directory: Path, name: str, values: dict[str, str]) -> Config:
    """The settings with ``name`` set to a value in each of the sources named."""
    if (text := values.get("orchestrator.toml")) is not None:
        (directory / "orchestrator.toml").write_text(f"{name} = '{text}'\n")
    if (text := values.get("pyproject.toml")) is not None:
        content = f"[project]\nname = 'mine'\n[tool.orchestrator]\n{name} = '{text}'\n"
        (directory / "pyproject.toml").write_text(content)
    environment = {"PATH": "/bin"}
    if (text := values.get("environment")) is not None:
        environment[f"ORCHESTRATOR_{name.upper()}"] = text
    return Config.resolve({name: values.get("command line")}, environment, directory)


def test_defaults(tmp_path: Path) -> None:
    """Without any setting, the run keeps three checkpoints and saves every ten minutes."""
    config = Config.resolve({}, {}, tmp_path)
    assert config == Config(
        run_dir=None,
        keep=None,
        keep_best=None,
        every=Every(600.0, "seconds"),
        grace=30.0,
        max_restarts=5,
    )
    assert config.retention == RetentionPolicy(keep=3, best=None)


@pytest.mark.parametrize(
    "present",
    [c for size in range(1, 5) for c in itertools.combinations(SOURCES, size)],
    ids=lambda sources: "+".join(sources),
)
def test_the_strongest_source_wins(tmp_path: Path, present: tuple[str, ...]) -> None:
    """The command line, then the environment, then orchestrator.toml, then pyproject.toml."""
    values = {source: str(2 + SOURCES.index(source)) for source in present}
    assert resolve(tmp_path, "keep", values).keep == int(values[present[0]])


def test_sources_are_combined(tmp_path: Path) -> None:
    """Each setting comes from the strongest source that has it."""
    (tmp_path / "orchestrator.toml").write_text("keep = 5\ngrace = '5s'\nmax-restarts = 7\n")
    environment = {"ORCHESTRATOR_GRACE": "50s", "ORCHESTRATOR_EVERY": "2epochs"}
    config = Config.resolve({"every": "9steps", "keep": None}, environment, tmp_path)
    assert (config.keep, config.grace, config.max_restarts) == (5, 50.0, 7)
    assert config.every == Every(9, "steps")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("run_dir", "runs/other", Path("runs/other")),
        ("keep", "2", 2),
        ("keep", "100", 100),
        ("keep_best", "loss:min", BestPolicy("loss", "min", 1)),
        ("keep_best", "val_accuracy:max:3", BestPolicy("val_accuracy", "max", 3)),
        ("every", "10m", Every(600.0, "seconds")),
        ("every", "500ms", Every(0.5, "seconds")),
        ("every", "500steps", Every(500, "steps")),
        ("every", "1step", Every(1, "steps")),
        ("every", "1epoch", Every(1, "epochs")),
        ("every", "2epochs", Every(2, "epochs")),
        ("grace", "90s", 90.0),
        ("grace", "1.5h", 5400.0),
        ("grace", "2d", 172800.0),
        ("max_restarts", "0", 0),
        ("spare", "on", True),
        ("spare", "off", False),
        ("slurm_requeue", "on", True),
        ("notice_file", "/run/notice", Path("/run/notice")),
        ("notice_command", "curl -sf localhost", "curl -sf localhost"),
    ],
)
@pytest.mark.parametrize("source", SOURCES)
def test_good_values(tmp_path: Path, source: str, name: str, text: str, expected: Any) -> None:
    """Each form of a value is understood wherever it stands."""
    assert getattr(resolve(tmp_path, name, {source: text}), name) == expected


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("run_dir", "", "directory"),
        ("keep", "1", "at least 2: with a single checkpoint, damage to it loses the run"),
        ("keep", "0", "at least 2"),
        ("keep", "-3", "whole number"),
        ("keep", "2.5", "whole number"),
        ("keep", "three", "whole number"),
        ("keep", "", "whole number"),
        ("keep", "True", "whole number"),
        ("keep_best", "loss", "METRIC:min"),
        ("keep_best", "loss:lowest", "METRIC:min"),
        ("keep_best", "loss:min:0", "METRIC:min"),
        ("keep_best", ":min", "METRIC:min"),
        ("every", "10", "10m, 500steps or 1epoch"),
        ("every", "0steps", "at least 1"),
        ("every", "0s", "longer than 0"),
        ("every", "-5m", "10m, 500steps or 1epoch"),
        ("every", "1.5epochs", "10m, 500steps or 1epoch"),
        ("every", "steps", "10m, 500steps or 1epoch"),
        ("every", "10m 5s", "10m, 500steps or 1epoch"),
        ("grace", "30", "90s, 10m or 2h"),
        ("grace", "0s", "longer than 0"),
        ("grace", "0.0m", "longer than 0"),
        ("grace", "1e3s", "90s, 10m or 2h"),
        ("grace", "soon", "90s, 10m or 2h"),
        ("max_restarts", "-1", "whole number"),
        ("max_restarts", "1.0", "whole number"),
        ("max_restarts", "off", "whole number"),
        ("spare", "no", "on or off"),
        ("spare", "1", "on or off"),
        ("slurm_requeue", "yes", "on or off"),
        ("notice_file", "", "name a file"),
        ("notice_command", " ", "write a command"),
    ],
)
@pytest.mark.parametrize("source", SOURCES)
def test_bad_values(tmp_path: Path, source: str, name: str, text: str, advice: str) -> None:
    """A bad value is refused with its source, the value itself, and what to write instead."""
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, name, {source: text})
    message = str(caught.value)
    place = {
        "command line": "--" + name.replace("_", "-"),
        "environment": f"ORCHESTRATOR_{name.upper()}",
    }.get(source, f"{name} in {source}")
    assert message.startswith(f"cannot use {place} = {text}: ")
    assert advice in message


def test_a_bad_value_that_is_overridden_is_not_looked_at(tmp_path: Path) -> None:
    """What a stronger source replaces cannot keep a run from starting."""
    assert resolve(tmp_path, "keep", {"command line": "4", "environment": "bad"}).keep == 4


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("keep = 4", {"keep": 4}),
        ("max-restarts = 0", {"max_restarts": 0}),
        ("keep = 1", None),
        ("keep = 2.0", None),
        ("keep = true", None),
        ("keep = [3]", None),
        ("every = 500", None),
        ("grace = 30", None),
        ("run_dir = ['a']", None),
        ("[keep]\nnewest = 3", None),
    ],
)
def test_values_with_a_type_of_toml(
    tmp_path: Path, line: str, expected: dict[str, Any] | None
) -> None:
    """A number may be written as a number; what is no text and no number is refused."""
    (tmp_path / "orchestrator.toml").write_text(line)
    if expected is None:
        with pytest.raises(ConfigError, match=r"^cannot use .* in orchestrator.toml"):
            Config.resolve({}, {}, tmp_path)
    else:
        config = Config.resolve({}, {}, tmp_path)
        assert {name: getattr(config, name) for name in expected} == expected


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    """A misspelt key is named, with the file and the keys that there are."""
    (tmp_path / "orchestrator.toml").write_text("kep = 3\ngrace = '5s'\n")
    with pytest.raises(ConfigError, match=r"^cannot use .*orchestrator\.toml.*kep,") as caught:
        Config.resolve({}, {}, tmp_path)
    assert all(setting.name in str(caught.value) for setting in fields(Config))


@pytest.mark.parametrize(
    "content",
    [
        b"keep = ",
        b"\xff\xfe",
        b"keep = 3\nkeep = 4\n",
    ],
)
@pytest.mark.parametrize("name", ["orchestrator.toml", "pyproject.toml"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """A settings file that cannot be read is named: ignoring it would change the run."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"^cannot read .*{name}"):
        Config.resolve({}, {}, tmp_path)


@pytest.mark.parametrize("content", ["[tool]\norchestrator = 3", "[tool]\norchestrator = ['keep']"])
def test_a_table_of_another_type_is_refused(tmp_path: Path, content: str) -> None:
    """[tool.orchestrator] that is no table is named and refused."""
    (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"^cannot .*pyproject\.toml"):
        Config.resolve({}, {}, tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[tool.ruff]\nkeep = 9", "tool = 3", "[project]\nkeep = 9"]
)
def test_a_project_file_without_our_table_sets_nothing(tmp_path: Path, content: str) -> None:
    """The settings of other tools are not ours."""
    (tmp_path / "pyproject.toml").write_text(content)
    assert Config.resolve({}, {}, tmp_path) == Config()


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    """A directory in the place of the settings file is an error with the system's reason."""
    (tmp_path / "orchestrator.toml").mkdir()
    with pytest.raises(ConfigError, match=r"^cannot read .*Is a directory"):
        Config.resolve({}, {}, tmp_path)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("200ms", 0.2), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), ("1d", 86400.0), ("0s", 0.0)],
)
def test_durations(text: str, seconds: float) -> None:
    """Durations are a number and a unit."""
    assert parse_duration(text) == parse_duration(f" {text} ") == seconds


def test_every_setting_explains_itself() -> None:
    """The help of each setting is a sentence that --help can print."""
    for setting in fields(Config):
        assert setting.metadata["help"].endswith(".")


@pytest.mark.parametrize("value", [True, False])
def test_a_switch_is_written_as_toml_writes_it(tmp_path: Path, value: bool) -> None:
    """In a file, true and false mean on and off."""
    (tmp_path / "orchestrator.toml").write_text(f"spare = {str(value).lower()}\n")
    assert Config.resolve({}, {}, tmp_path).spare is value


@pytest.mark.parametrize(("word", "expected"), [("--spare", "on"), ("--no-spare", "off")])
def test_a_switch_on_the_command_line(word: str, expected: str) -> None:
    """--spare and --no-spare say what on and off say elsewhere."""
    assert parse(["run", word, "--", "true"]).spare == expected
    assert parse(["run", "--", "true"]).spare is None
