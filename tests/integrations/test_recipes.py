"""The recipes of --adopt name what the installed frameworks write and read."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from lightning.pytorch import LightningModule, Trainer
from transformers import HfArgumentParser, TrainingArguments

from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.recipes import preset
from orchestrator.adopt.save_check import examine
from orchestrator.first_look.resume_options import find_resume_option


def matches(recipe: str, *options: str) -> list[Path]:
    """Return what the recipe's pattern finds for a command with these options."""
    found = preset(recipe, ["python", "train.py", *options])
    assert found is not None
    return Pattern.parse(found.pattern).find()[1]


def resume_arg(recipe: str) -> str:
    found = preset(f"{recipe}:out", ["python", "train.py"])
    assert found is not None
    return found.resume_arg


class Model(LightningModule):
    """A model that trains on its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("starts", [1, 2])
def test_lightning_saves_where_the_recipe_looks(tmp_path: Path, starts: int) -> None:
    """Its own default directory has a new version for each start; the names tell the step."""
    for _ in range(starts):
        trainer = Trainer(
            default_root_dir=tmp_path,
            max_steps=2,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=2))
    found = matches("lightning", "--trainer.default_root_dir", str(tmp_path))
    assert len(found) == starts
    for path in found:
        assert Pattern.parse(f"{path.parent}/*.ckpt").step_of(path) == 2


def test_accelerate_saves_where_the_recipe_looks(tmp_path: Path) -> None:
    """A directory of save_state matches, and is whole."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    accelerator.save_state(str(tmp_path / "step_5"))
    (found,) = matches("accelerate", f"--output_dir={tmp_path}")
    saved = SavedFiles.at(found)
    assert saved is not None
    examine(saved)


def test_trainer_has_the_options_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of TrainingArguments names the option that the recipe fills in."""
    with pytest.raises(SystemExit):
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--help"])  # type: ignore[arg-type]
    text = capsys.readouterr().out
    option = find_resume_option(text)
    assert option is not None
    assert option.words == resume_arg("hf")
    assert "--output_dir" in text
    # Without an output directory it chooses this one.
    assert matches("hf") == []
    assert TrainingArguments(use_cpu=True).output_dir == "trainer_output"
