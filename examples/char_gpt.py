"""A character GPT trained on the Python standard library's own sources.

Supervised:

    orchestrator run -- python examples/char_gpt.py --size small --steps 2000

Bare:

    python examples/char_gpt.py --size small --steps 2000

Batches are drawn from torch's global random number generator, which is part of every checkpoint,
so a run that is stopped and continued sees the same text and prints the same sample at the end.
"""

import argparse
import math
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator import Session

VOCABULARY = 256  # each character is one byte


class Size(NamedTuple):
    layers: int
    heads: int
    width: int
    learning_rate: float


SIZES = {
    "tiny": Size(layers=2, heads=2, width=64, learning_rate=4e-3),
    "small": Size(layers=4, heads=4, width=256, learning_rate=1e-3),
    "medium": Size(layers=8, heads=8, width=512, learning_rate=6e-4),
    "large": Size(layers=14, heads=12, width=768, learning_rate=3e-4),
}


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.mlp(x)
        return out

    def attention(self, x: Tensor) -> Tensor:
        qkv = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))  # B, T, 3, heads, head
        query, key, value = qkv.transpose(1, 3).unbind(2)  # B, heads, T, head
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.projection(mixed.transpose(1, 2).flatten(2))
        return out


class CharGPT(nn.Module):
    def __init__(self, size: Size, context: int) -> None:
        super().__init__()
        self.context = context
        self.characters = nn.Embedding(VOCABULARY, size.width)
        self.positions = nn.Embedding(context, size.width)
        self.blocks = nn.Sequential(*(Block(size.width, size.heads) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, VOCABULARY, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        self.head.weight = self.characters.weight

    def forward(self, text: Tensor) -> Tensor:
        positions = torch.arange(text.shape[1], device=text.device)
        x = self.characters(text) + self.positions(positions)
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits

    @torch.no_grad()
    def generate(self, text: Tensor, count: int) -> Tensor:
        for _ in range(count):
            logits = self(text[:, -self.context :])[:, -1]
            drawn = torch.multinomial(logits.softmax(-1), 1)
            text = torch.cat([text, drawn], dim=1)
        return text


def read_standard_library(limit: int) -> Tensor:
    """Return the first `limit` bytes of the standard library's modules, in alphabetical order."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= limit:
            break
    return torch.frombuffer(text[:limit], dtype=torch.uint8)


def draw_batch(text: Tensor, batch_size: int, context: int) -> tuple[Tensor, Tensor]:
    """Draw windows of the text at random positions, and the same windows one character later.

    Both have the shape (batch_size, context).
    """
    starts = torch.randint(len(text) - context, (batch_size, 1))
    windows = text[starts + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


def warmup_then_cosine(step: int, total: int) -> float:
    """Return the learning rate at `step` of `total` as a fraction of its peak, at last a tenth."""
    warmup = total // 20
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def main() -> None:
    """Train, then print a sample."""
    parser = argparse.ArgumentParser(description="Train a character GPT on Python's own sources.")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--accumulate", type=int, default=1, help="batches per optimizer step")
    parser.add_argument("--context", type=int, default=128, help="characters the model sees")
    parser.add_argument("--megabytes", type=float, default=4.0, help="how much text to read")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    text = read_standard_library(int(args.megabytes * 1e6))
    size = SIZES[args.size]
    model = CharGPT(size, args.context).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_then_cosine(step, args.steps)
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {len(text):,} characters of text, on {device}", flush=True)

    with Session(model=model, optimizer=optimizer, scheduler=scheduler) as session:
        for step in session.steps(args.steps):
            total_loss = torch.zeros((), device=device)
            for _ in range(args.accumulate):
                inputs, targets = draw_batch(text, args.batch_size, args.context)
                logits = model(inputs.to(device))
                loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
                (loss / args.accumulate).backward()
                total_loss += loss.detach() / args.accumulate
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            if (step + 1) % 50 == 0:
                print(f"step {step + 1}  loss {total_loss.item():.4f}", flush=True)
            session.step(loss=total_loss)

    prompt = torch.tensor([list(b"def ")], device=device)
    sample = model.generate(prompt, 100)[0].tolist()
    print(bytes(sample).decode(errors="replace"))


if __name__ == "__main__":
    main()
