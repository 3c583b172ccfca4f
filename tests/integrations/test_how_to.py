"""The frameworks' pages can be followed: their blocks run with the frameworks themselves."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_how_to import DOCS, blocks

HUGGING_FACE = """
import torch
from transformers import Trainer, TrainingArguments

class Line(torch.nn.Linear):
    def forward(self, x):
        return {"loss": super().forward(x).square().mean()}

given = {
    "model": Line(1, 1),
    "args": TrainingArguments(max_steps=4, report_to="none", disable_tqdm=True, use_cpu=True),
    "train_dataset": [{"x": torch.rand(1)} for _ in range(8)],
}
"""
LIGHTNING = """
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def training_step(self, batch):
        return self.layer(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

model, loader = Line(), DataLoader(torch.randn(8, 2), batch_size=2)
given = {"max_epochs": 2, "logger": False, "accelerator": "cpu", "devices": 1}
"""
ACCELERATE = """
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from orchestrator import Session

torch.manual_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model, criterion = torch.nn.Linear(2, 1), torch.nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
loader = DataLoader(TensorDataset(torch.randn(8, 2), torch.randn(8, 1)), batch_size=2)
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("page", "before"),
    [("huggingface", HUGGING_FACE), ("lightning", LIGHTNING), ("accelerate", ACCELERATE)],
)
def test_block_of_a_frameworks_page_trains_to_completion(
    page: str, before: str, tmp_path: Path
) -> None:
    """A script needs nothing beyond what the page shows to be a run."""
    (block,) = blocks(DOCS / "how-to" / f"{page}.md", "python")
    (tmp_path / "train.py").write_text(before + re.sub(r"\(\.\.\., ", "(**given, ", block))
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=True, timeout=180)
    assert (tmp_path / "runs" / "train" / "done.json").exists()
