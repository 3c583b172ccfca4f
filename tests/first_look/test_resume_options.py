"""The option by which a script is told what to resume from, in its --help or its source."""

import pytest

from orchestrator.first_look.resume_options import (
    find_in_source,
    find_member_options,
    find_resume_option,
)

HELP_TEXTS = {
    "argparse": (
        "usage: x [-h] [--lr LR] [--resume PATH]\n  --resume PATH  where",
        "--resume {path}",
    ),
    "usage alone": ("usage: x [--resume RESUME]", "--resume {path}"),
    "alternatives": ("usage: x (--scratch | --resume RESUME)", "--resume {path}"),
    "value may be left out": ("  --resume [RESUME]   resume", "--resume {path}"),
    "two spellings": (
        "  --resume_from_checkpoint FILE, --resume-from-checkpoint FILE\n",
        "--resume_from_checkpoint {path}",
    ),
    "short name first": ("  -i AGENT, --trained-agent AGENT\n", "--trained-agent {path}"),
    "short name without value": ("  -i, --trained-agent AGENT\n", "--trained-agent {path}"),
    "click": ("Options:\n  --resume PATH       Resume.\n", "--resume {path}"),
    "typer": ("│ --resume        TEXT  [default: None] │", "--resume {path}"),
    "absl": ("  --resume: Path of a checkpoint\n    (default: '')", "--resume {path}"),
    "fire": ("    --resume=RESUME\n        Type: Optional[]", "--resume {path}"),
    "lightning": ("  --ckpt_path CKPT_PATH  Path of the checkpoint", "--ckpt_path {path}"),
    "group before the name": ("  --train.resume RESUME", "--train.resume {path}"),
    "flag": ("  --resume              resume training", "--resume"),
    "click's flag": ("  --resume / --no-resume   Resume.", "--resume"),
    "choices": ("  --init_from {scratch,resume}", "--init_from=resume"),
    "path before flag": ("  --resume   again\n  --load_from FILE", "--load_from {path}"),
    "positional": ("usage: x [-h] [--lr LR] [resume]", "{path}"),
    "described": ("  --weights FILE  weights to continue training", "--weights {path}"),
    "described below": (
        "  --a-very-long-name FILE\n      to resume training",
        "--a-very-long-name {path}",
    ),
}
NO_OPTION = {
    "nothing": "usage: x [--lr LR]",
    "empty": "",
    "number": "  --resume N  epoch to resume",
    "step": "  --resume_step STEP  --start-epoch N",
    "end": "  --load_best_model_at_end [LOAD]",
    "choices": "  --init_from {scratch,gpt2}",
    "in a sentence": "  --wandb   use --resume to continue",
    "absl's switch": "  --[no]resume: whether",
    "one for each part": "  --netG G  to continue training\n  --netD D  to continue training",
}


@pytest.mark.parametrize(("text", "words"), HELP_TEXTS.values(), ids=HELP_TEXTS.keys())
def test_option_is_found_in_the_help(text: str, words: str) -> None:
    """The help of the common libraries tells the option, and whether it takes a path."""
    option = find_resume_option(text)
    assert option is not None
    assert option.words == words


@pytest.mark.parametrize("text", NO_OPTION.values(), ids=NO_OPTION.keys())
def test_help_without_such_an_option_names_none(text: str) -> None:
    """An option that takes a number, or that is only mentioned, is none."""
    assert find_resume_option(text) is None


def test_options_of_files_that_are_saved_together() -> None:
    """Each takes the file of its name; names alone, such as --model, are no such options."""
    text = (
        "  --netG G  to continue training\n  --netD D  to continue training\n  --a A  x\n  --b B  y"
    )
    option = find_member_options(text, ("netG", "netD"))
    assert option is not None
    assert option.words == "--netG {netG} --netD {netD}"
    for names in (("netG",), ("netG", "path2"), ("a", "b")):
        assert find_member_options(text, names) is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('n = load() if "--resume" in sys.argv else 0', "--resume {path}"),
        ("if word.startswith('--load-from='):", "--load-from {path}"),
        ("print('--lr', '--resume-step')", None),
    ],
)
def test_option_is_found_in_the_source(source: str, words: str | None) -> None:
    """A script that reads its command line by hand names its options in quotes."""
    option = find_in_source(source)
    assert (None if option is None else option.words) == words
