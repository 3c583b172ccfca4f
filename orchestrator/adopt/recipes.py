"""Recipes: the patterns and resume arguments of programs whose layout is known, by name.

``--adopt NAME`` takes the directory from the options of the script's command, ``--adopt NAME:DIR``
names it.
"""

import difflib
import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_NAME = re.compile(r"([A-Za-z][\w.-]*)(?::(.+))?", re.DOTALL)
LEAST_LIKENESS = 0.85


@dataclass(frozen=True)
class Choice:
    """A part of the directory that the command decides, with an option or with one of ``words``.

    Without a default the command must decide it.
    """

    options: tuple[str, ...]
    default: str | None
    words: tuple[str, ...] = ()

    def value_in(self, command: Sequence[str]) -> str | None:
        """Return what the command says, as plain text of a pattern; else the default."""
        value = self.default
        for word, following in zip(command, [*command[1:], ""], strict=True):
            name, _, joined = word.partition("=")
            if word in self.words:
                value = word
            elif name in self.options and joined:
                value = joined
            elif word in self.options and word.startswith("-") and following:
                value = following
        return value if value is None or value == self.default else glob.escape(value)


@dataclass(frozen=True)
class Recipe:
    """Where a program saves, and how it is told what to resume from.

    ``directory`` has the names of ``choices`` in braces. ``mark`` is a regular expression by which
    a script, or a command, that takes the resume argument is recognized.
    """

    name: str
    program: str
    directory: str
    files: str
    resume_arg: str
    mark: str
    other_names: tuple[str, ...]
    choices: Mapping[str, Choice] = field(default_factory=dict)
    note: str = ""

    def pattern(self, command: Sequence[str], directory: str | None = None) -> str:
        """Return the pattern for a command. Raises ValueError if the directory is not known."""
        if directory is not None:
            return os.path.join(directory, self.files)
        values = {name: choice.value_in(command) for name, choice in self.choices.items()}
        for name, value in values.items():
            if value is None:
                option = self.choices[name].options[0]
                raise ValueError(
                    f"the recipe {self.name} needs {option} in the command, since the program "
                    f"names its directory by the time without it; or write {self.name}:DIRECTORY"
                )
        return os.path.normpath(os.path.join(self.directory.format(**values), self.files))


@dataclass(frozen=True)
class Preset:
    """The settings that a recipe stands for, as texts of a command line."""

    pattern: str
    resume_arg: str


_OUTPUT_DIR = ("--output_dir", "--output-dir")
RECIPES = (
    Recipe(
        "hf",
        "Hugging Face Trainer",
        "{output_dir}",
        "checkpoint-*",
        "--resume_from_checkpoint {path}",
        r"\bHfArgumentParser\b|\bresume_from_checkpoint\b",
        ("huggingface", "transformers"),
        {"output_dir": Choice(_OUTPUT_DIR, "trainer_output")},
        "the script must pass `--resume_from_checkpoint` on to `train()`",
    ),
    Recipe(
        "lightning",
        "Lightning's `LightningCLI`",
        "{root}/lightning_logs/version_*/checkpoints",
        "*.ckpt",
        "--ckpt_path {path}",
        r"\bLightningCLI\b",
        ("pytorch-lightning",),
        {"root": Choice(("--trainer.default_root_dir", "--default_root_dir"), ".")},
        "versions that are already there are taken for this run's",
    ),
    Recipe(
        "accelerate",
        "Accelerate's examples (`save_state`)",
        "{output_dir}",
        "step_*",
        "--resume_from_checkpoint {path}",
        r"\bresume_from_checkpoint\b",
        ("accelerator",),
        {"output_dir": Choice(_OUTPUT_DIR, ".")},
        "with `--checkpointing_steps N`; with `epoch` write `--adopt 'OUT/epoch_*'`",
    ),
    Recipe(
        "ultralytics",
        "Ultralytics YOLO",
        "runs/{task}/{name}*/weights",
        "last.pt",
        "resume=True model={path}",
        r"\byolo\b",
        ("yolo", "yolov8", "yolo11"),
        {
            "task": Choice(("task",), "detect", ("segment", "classify", "pose", "obb")),
            "name": Choice(("name",), "train"),
        },
        "give `name=NAME`: trainings of that name that are already there are taken for this run's; "
        "with `project=DIR` write `ultralytics:'DIR/NAME*/weights'`",
    ),
    Recipe(
        "timm",
        "timm's `train.py`",
        "{output}/{experiment}",
        "checkpoint-*.pth.tar",
        "--resume {path}",
        r"\btimm\b",
        ("pytorch-image-models",),
        {
            "output": Choice(("--output",), "output/train"),
            "experiment": Choice(("--experiment",), None),
        },
        "with `--experiment NAME`",
    ),
    Recipe(
        "nanogpt",
        "nanoGPT",
        "{out_dir}",
        "ckpt.pt",
        "--init_from=resume",
        r"\binit_from\b",
        ("nano-gpt", "nanochat"),
        {"out_dir": Choice(("--out_dir",), "out")},
        "where a config file sets `out_dir`, write `nanogpt:DIR`",
    ),
    Recipe(
        "sb3",
        "RL Zoo of Stable-Baselines3",
        "{folder}/{algo}/{env}_*",
        "rl_model_*_steps.zip",
        "--trained-agent {path}",
        r"\brl_zoo3\b|\btrained_agent\b",
        ("stable-baselines3", "rl-zoo3", "rlzoo"),
        {
            "folder": Choice(("-f", "--log-folder"), "logs"),
            "algo": Choice(("--algo",), "ppo"),
            "env": Choice(("--env",), "CartPole-v1"),
        },
        "with `--save-freq N`; trainings that are already there are taken for this run's",
    ),
)


def preset(text: str, command: Sequence[str]) -> Preset | None:
    """Return what the text of --adopt stands for if it is the name of a recipe, else None.

    ``./NAME`` is a path. Raises ValueError for a name that is almost one of a recipe, and where the
    directory is not known.
    """
    match = _NAME.fullmatch(text.strip())
    if match is None:
        return None
    name, directory = match.groups()
    for recipe in RECIPES:
        if recipe.name == name:
            return Preset(recipe.pattern(command, directory), recipe.resume_arg)
    meant = _almost(name)
    if meant is not None and not os.path.lexists(text):
        raise ValueError(
            f"there is no recipe {name}; write {meant} for {_program(meant)}, or ./{text} for a "
            "file or directory"
        )
    return None


def _almost(name: str) -> str | None:
    """Return the recipe that a name may mean."""
    known = {other: recipe.name for recipe in RECIPES for other in recipe.other_names}
    known |= {recipe.name: recipe.name for recipe in RECIPES}
    like = difflib.get_close_matches(name.lower(), known, 1, LEAST_LIKENESS)
    return known[like[0]] if like else None


def _program(name: str) -> str:
    return next(recipe.program for recipe in RECIPES if recipe.name == name)
