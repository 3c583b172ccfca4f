"""Runs a variant of examples/hf_trainer.py: `python hf_variant.py VARIANT ARGS...`.

``jit``: with the Trainer's own handling of SIGTERM. ``last``: resumes from what
get_last_checkpoint() finds. ``cut``: the same, and where that finds nothing, the trainer stands
still when it has written half of the tenth step's optimizer. ``older``: resumes from the
twentieth step, though later ones are there. ``missing``: from what is not there.
``slow``: each batch of an evaluation takes a while in the first attempt.
``unsaved``: each batch draws as many numbers as there were batches in this process.
``short``: ends in mid-epoch, by max_steps. ``early``: ends when two evaluations have been no
better, and is stopped between the two.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.trainer_utils import get_last_checkpoint

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "hf_trainer.py"
_save = torch.save


def save_half(content: Any, file: Any, **options: Any) -> None:
    _save(content, file, **options)
    path = Path(str(file))
    if path.match("checkpoint-10/optimizer.pt"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        print("half-written", flush=True)
        time.sleep(300)


class Slow(transformers.TrainerCallback):
    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        print("evaluating", flush=True)
        if os.environ["ORCHESTRATOR_ATTEMPT"] == "1":
            time.sleep(0.5)


class StoppedOnce(transformers.TrainerCallback):
    def on_step_end(
        self, args: Any, state: transformers.TrainerState, control: Any, **_: Any
    ) -> None:
        if state.global_step == 20:
            os.kill(os.getpid(), signal.SIGTERM)


class Variant(transformers.Trainer):
    batches = 0

    def __init__(self, args: transformers.TrainingArguments, **given: Any) -> None:
        if variant == "slow":
            given["callbacks"].append(Slow())
        if variant == "short":
            args.max_steps = 20
        if variant == "early":
            args.metric_for_best_model, args.greater_is_better = "eval_loss", True  # it falls
            given["callbacks"] += [StoppedOnce(), transformers.EarlyStoppingCallback(2)]
        args.enable_jit_checkpoint = variant == "jit"
        super().__init__(args=args, **given)

    def training_step(self, *given: Any, **options: Any) -> Any:
        if variant == "unsaved":
            self.batches += 1
            torch.rand(self.batches)
        return super().training_step(*given, **options)

    def train(self, *_: Any, **__: Any) -> Any:
        last = (
            get_last_checkpoint(self.args.output_dir)
            if Path(self.args.output_dir).exists()
            else None
        )
        if variant == "cut" and last is None:
            torch.save = save_half
        if variant == "older":
            last = f"{self.args.output_dir}/checkpoint-20"
        if variant == "missing":
            last = f"{self.args.output_dir}/pretrained"
        return super().train(last if variant in ("last", "cut", "older", "missing") else None)


variant = sys.argv.pop(1)
transformers.Trainer = Variant  # type: ignore[misc]
runpy.run_path(str(EXAMPLE), run_name="__main__")
