"""A script that trains a part of a model with a Trainer, then all of it with another one.

python hf_phases.py runs|one|again [PHASE STEP]: each phase has its own run, both share one, or the
same Trainer trains twice. The script kills itself after that step of that phase. At its end it
saves the model.
"""

import os
import signal
import sys
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from orchestrator.integrations.transformers import OrchestratorCallback

how, killed_at = sys.argv[1], tuple(map(int, sys.argv[2:]))
del sys.argv[2:]  # they belong to the test, not to the training


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = self.head(torch.nn.functional.dropout(self.body(x), 0.2, self.training))
        return {"loss": loss.square().mean()}


class Killed(TrainerCallback):
    def __init__(self, phase: int) -> None:
        self.phase = phase

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (self.phase, state.global_step) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)


set_seed(0)
net = Net()
data = [{"x": torch.randn(4)} for _ in range(32)]
for phase in (0, 1):
    net.body.requires_grad_(phase == 1)
    if phase == 0 or how != "again":
        arguments = TrainingArguments(
            output_dir=f"out/{phase}",
            num_train_epochs=2,
            per_device_train_batch_size=8,
            save_steps=3,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        callback = OrchestratorCallback(f"runs/{phase}" if how == "runs" else None)
        trainer = Trainer(net, arguments, train_dataset=data, callbacks=[callback, Killed(phase)])
    trainer.train()
    print("trained", phase, flush=True)
torch.save(net.state_dict(), "result.pt")
