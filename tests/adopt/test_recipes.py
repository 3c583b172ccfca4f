"""The recipes: names that stand for the pattern and the resume argument of known programs."""

import re
from pathlib import Path

import pytest

from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.recipes import RECIPES, Choice, preset
from orchestrator.adopt.resume_argument import ResumeArgument
from orchestrator.config import Config
from orchestrator.errors import ConfigError
from tests.recipe_table import table

ADOPT_PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "adopt-a-script.md"


def adopted(text: str, *command: str, directory: Path = Path()) -> str:
    """Return the pattern that --adopt stands for."""
    config = Config.resolve({"adopt": text}, {}, directory, command or ["python", "train.py"])
    assert config.adopt is not None
    return config.adopt.text


@pytest.mark.parametrize(
    ("text", "command", "pattern"),
    [
        ("hf", "python train.py", "trainer_output/checkpoint-*"),
        ("hf", "python train.py --output_dir mine", "mine/checkpoint-*"),
        ("hf", "python train.py --output_dir a --output-dir=b", "b/checkpoint-*"),
        ("hf:there", "python train.py --output_dir mine", "there/checkpoint-*"),
        ("lightning", "python m.py fit", "lightning_logs/version_*/checkpoints/*.ckpt"),
        ("lightning:out", "python m.py fit", "out/*.ckpt"),
        ("accelerate", "python m.py --output_dir o", "o/step_*"),
        ("ultralytics", "yolo train model=x", "runs/detect/train*/weights/last.pt"),
        ("ultralytics", "yolo segment train name=m", "runs/segment/m*/weights/last.pt"),
        ("ultralytics", "yolo task=pose mode=train", "runs/pose/train*/weights/last.pt"),
        ("timm", "python train.py --experiment a", "output/train/a/checkpoint-*.pth.tar"),
        ("timm", "python t.py --output o --experiment a[1]", "o/a[[]1]/checkpoint-*.pth.tar"),
        ("nanogpt", "python train.py --out_dir=mine", "mine/ckpt.pt"),
        ("sb3", "python m.py -f l --algo dqn --env A-v1", "l/dqn/A-v1_*/rl_model_*_steps.zip"),
        ("./hf", "python train.py", "./hf"),
        ("hf/", "python train.py", "hf/"),
        ("model.pt", "python train.py", "model.pt"),
        ("out", "python train.py", "out"),
    ],
)
def test_recipe_takes_its_directory_from_the_command(text: str, command: str, pattern: str) -> None:
    """A recipe stands for the pattern of the command's output directory; a path is a path."""
    assert adopted(text, *command.split()) == pattern


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe_is_usable(recipe: object) -> None:
    """Every recipe has a pattern and a resume argument that parse, and a name of its own."""
    (same,) = [other for other in RECIPES if other is recipe]
    found = preset(f"{same.name}:out", ["python"])
    assert found is not None
    assert Pattern.parse(found.pattern).text.startswith("out/")
    assert ResumeArgument.parse(found.resume_arg).template
    assert re.compile(same.mark)
    names = [name for other in RECIPES for name in (other.name, *other.other_names)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("huggingface", "hf"),
        ("HF", "hf"),
        ("transformer", "hf"),
        ("yolo", "ultralytics"),
        ("nanoGPT", "nanogpt"),
        ("lightening:out", "lightning"),
        ("stable_baselines3", "sb3"),
    ],
)
def test_name_that_is_almost_a_recipe_gets_a_hint(
    text: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the recipe, and how to write a path; a path that exists is meant."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"there is no recipe .*; write {meant} .*or \./{text}"):
        adopted(text)
    Path(text).touch()
    assert adopted(text) == text


def test_recipe_without_a_known_directory_is_refused() -> None:
    """The message says which option the command lacks."""
    with pytest.raises(ConfigError, match=r"needs --experiment in the command.*timm:DIRECTORY"):
        adopted("timm")


def test_resume_argument_of_a_person_comes_before_that_of_the_recipe(tmp_path: Path) -> None:
    """It comes from the recipe only where no source gives one."""
    command = ["python", "train.py"]
    config = Config.resolve({"adopt": "hf"}, {}, tmp_path, command)
    assert config.resume_arg.template == ("--resume_from_checkpoint", "{path}")
    (tmp_path / "orchestrator.toml").write_text("adopt = 'timm:out'\nresume_arg = '--again'\n")
    config = Config.resolve({}, {}, tmp_path, command)
    assert config.adopt is not None
    assert config.adopt.text == "out/checkpoint-*.pth.tar"
    assert config.resume_arg.template == ("--again",)


def test_commands_without_a_script_take_a_recipe_as_it_is(tmp_path: Path) -> None:
    """`orchestrator status` needs no --experiment."""
    (tmp_path / "orchestrator.toml").write_text("adopt = 'timm'\nrun_dir = 'mine'\n")
    assert Config.resolve({}, {}, tmp_path).run_dir == Path("mine")


def test_last_word_of_a_command_may_be_an_option() -> None:
    """An option without its value decides nothing."""
    choice = Choice(("--out",), "usual")
    assert choice.value_in(["python", "--out"]) == "usual"
    assert choice.value_in(["python", "--out", "a", "--out="]) == "a"


def test_table_of_recipes_is_that_of_the_page() -> None:
    """The page has the table that `python -m tests.recipe_table` prints."""
    assert table() in ADOPT_PAGE.read_text()
