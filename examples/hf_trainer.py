"""A small GPT-2 on Python's own sources, trained by the Trainer of Hugging Face transformers.

Supervised:

    orchestrator run -- python examples/hf_trainer.py --epochs 3

Bare:

    python examples/hf_trainer.py --epochs 3

The callback is the only line that other scripts do not have. It resumes the run, publishes the
Trainer's checkpoints, and stops at the end of a step. Nothing is downloaded: the model starts with
random weights, and each character is one byte.
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from orchestrator.integrations.transformers import OrchestratorCallback

VOCABULARY = 256


class Windows(Dataset[dict[str, Tensor]]):
    """The beginning of the standard library's modules, in windows of equal length."""

    def __init__(self, count: int, context: int) -> None:
        text = bytearray()
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            text += path.read_bytes()
            if len(text) >= count * context:
                break
        self.windows = torch.frombuffer(text[: count * context], dtype=torch.uint8)
        self.windows = self.windows.view(count, context).long()

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.windows[index], "labels": self.windows[index]}


def main() -> None:
    """Train, then evaluate."""
    parser = argparse.ArgumentParser(description="Train a tiny GPT-2 on Python's own sources.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=512, help="windows of text in an epoch")
    parser.add_argument("--context", type=int, default=64, help="characters the model sees")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=2, help="batches per optimizer step")
    parser.add_argument("--save-steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0, help="processes that load the data")
    parser.add_argument(
        "--output", default="hf-trainer", help="directory for the Trainer's checkpoints"
    )
    args = parser.parse_args()

    set_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=args.context, n_embd=32, n_layer=2, n_head=2
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            output_dir=args.output,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            gradient_accumulation_steps=args.accumulate,
            learning_rate=4e-3,
            save_steps=args.save_steps,
            save_total_limit=2,
            eval_strategy="epoch",
            logging_steps=10,
            dataloader_num_workers=args.workers,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Windows(args.samples, args.context),
        eval_dataset=Windows(32, args.context),
        callbacks=[OrchestratorCallback()],
    )
    trainer.train()
    print(f"final loss {trainer.evaluate()['eval_loss']:.4f}")


if __name__ == "__main__":
    main()
