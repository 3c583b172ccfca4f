"""A small network on scikit-learn's handwritten digits, with accelerate and a session.

Supervised:

    orchestrator run -- python examples/accelerate_digits.py

Bare:

    python examples/accelerate_digits.py

Four batches make a step (gradient accumulation); the last step of an epoch may have fewer. Stop the
script anywhere and run the same command again: it prints the lines that it would have printed.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from orchestrator import Session


class NoisyDigits(Dataset[tuple[Tensor, Tensor]]):
    """Digits of 8x8 pixels with noise that is drawn at each access."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index] + 0.1 * torch.randn(64), self.labels[index]


def load_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images, test images, training labels and test labels, always split alike."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.2, random_state=0)
    return images[train], images[test], labels[train], labels[test]


def main() -> None:
    """Train, and evaluate after every epoch."""
    parser = argparse.ArgumentParser(description="Train on handwritten digits with accelerate.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2, help="processes that load the data")
    args = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    train_images, test_images, train_labels, test_labels = load_split()
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(
        NoisyDigits(train_images, train_labels),
        args.batch_size,
        shuffle=True,
        num_workers=args.workers,
    )
    test_loader = DataLoader(TensorDataset(test_images, test_labels), 120)
    steps = args.epochs * -(-len(loader) // accelerator.gradient_accumulation_steps)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model, optimizer, loader, test_loader, scheduler = accelerator.prepare(
        model, optimizer, loader, test_loader, scheduler
    )
    criterion = nn.CrossEntropyLoss()

    with Session(model=model, optimizer=optimizer, scheduler=scheduler) as session:
        for epoch in session.epochs(args.epochs):
            model.train()
            for images, labels in session.batches(loader):
                with accelerator.accumulate(model):
                    loss = criterion(model(images), labels)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    session.state["loss"] = loss.item()
                    session.step(loss=loss)

            model.eval()
            correct = 0
            with torch.no_grad():
                for images, labels in session.batches(test_loader):
                    is_correct = model(images).argmax(1) == labels
                    correct += int(accelerator.gather_for_metrics(is_correct).sum())
                    session.poll()
            accuracy = correct / len(test_labels)
            session.poll(accuracy=accuracy)
            loss = session.state["loss"]
            print(
                f"epoch {epoch + 1:2d}  loss {loss:.4f}  test accuracy {accuracy:.4f}", flush=True
            )


if __name__ == "__main__":
    main()
