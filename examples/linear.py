"""The smallest example: a line through four points, interrupted after three of five epochs.

Supervised; the second command continues the run of the first one:

    orchestrator run -- python examples/linear.py --interrupt-after 3
    orchestrator run -- python examples/linear.py

Bare, with the same result:

    python examples/linear.py --interrupt-after 3
    python examples/linear.py
"""

import argparse
import signal

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from orchestrator import Session


def main() -> None:
    """Train for five epochs of one step each."""
    parser = argparse.ArgumentParser(description="Fit a line to four points.")
    parser.add_argument(
        "--interrupt-after", type=int, metavar="N", help="press Ctrl-C after epoch N"
    )
    args = parser.parse_args()

    torch.manual_seed(0)
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    loader = DataLoader(TensorDataset(x, 2 * x), batch_size=4)
    model = nn.Linear(1, 1)
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with Session(model=model, optimizer=optimizer) as session:
        for epoch in session.epochs(5):
            for inputs, targets in session.batches(loader):
                loss = criterion(model(inputs), targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                print(f"epoch {epoch + 1}  loss {loss.item():.6f}", flush=True)
                session.step(loss=loss)
            if epoch + 1 == args.interrupt_after:
                signal.raise_signal(signal.SIGINT)  # handled at the end of the epoch


if __name__ == "__main__":
    main()
