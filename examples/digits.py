"""A small CNN on scikit-learn's handwritten digits: above 98% in half a minute on two cores.

Supervised:

    orchestrator run -- python examples/digits.py

Bare:

    python examples/digits.py

Stop the script anywhere, even in the middle of an epoch or of the evaluation, and run the same
command again: it prints the lines that it would have printed, to the last digit.
"""

import argparse

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from orchestrator import Session


class ShiftedDigits(Dataset[tuple[Tensor, Tensor]]):
    """Digits of 8x8 pixels, each shifted at random by up to one pixel at each access."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.padded = F.pad(images, (1, 1, 1, 1))
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        top, left = torch.randint(3, (2,)).tolist()
        return self.padded[index, :, top : top + 8, left : left + 8], self.labels[index]


def load_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images, test images, training labels and test labels, always split alike."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.2, random_state=0)
    return images[train], images[test], labels[train], labels[test]


def build_model() -> nn.Module:
    """Build a model of three convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(128 * 2 * 2, 10),
    )


def main() -> None:
    """Train, and evaluate after every epoch."""
    parser = argparse.ArgumentParser(description="Train a small CNN on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="processes that load the data")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train_images, test_images, train_labels, test_labels = load_split()
    dataset = ShiftedDigits(train_images, train_labels)
    loader = DataLoader(dataset, args.batch_size, shuffle=True, num_workers=args.workers)
    # Plain slices, not a DataLoader: an interrupted evaluation starts over, so it must not draw
    # random numbers, and every DataLoader draws one when it is iterated.
    test_batches = list(
        zip(torch.split(test_images, 120), torch.split(test_labels, 120), strict=True)
    )
    model = build_model()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)

    with Session(model=model, optimizer=optimizer, scheduler=scheduler) as session:
        state = session.state
        for epoch in session.epochs(args.epochs):
            model.train()
            for images, labels in session.batches(loader):
                loss = criterion(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                state["loss_sum"] = state.get("loss_sum", 0.0) + loss.item()
                session.step(loss=loss)

            model.eval()
            correct = 0
            with torch.no_grad():
                for images, labels in test_batches:
                    correct += int((model(images).argmax(1) == labels).sum())
                    session.poll()
            accuracy = correct / len(test_labels)
            session.poll(accuracy=accuracy)

            # After the last safe point of the epoch, so that none of this can run twice.
            scheduler.step()
            state["accuracy"] = accuracy
            state["best"] = max(accuracy, state.get("best", 0.0))
            print(
                f"epoch {epoch + 1:2d}  loss {state.pop('loss_sum') / len(loader):.4f}  "
                f"test accuracy {accuracy:.4f}  best {state['best']:.4f}",
                flush=True,
            )

    print(f"final test accuracy {state['accuracy']:.4f}")


if __name__ == "__main__":
    main()
