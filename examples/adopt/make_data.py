"""Makes a tiny data set, or a tiny model with random weights, for one of the programs.

python examples/adopt/make_data.py KIND DIRECTORY

It runs in the program's own environment.
"""

import argparse
import json
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path

SEED = 0
WORDS = [
    "the",
    "a",
    "model",
    "trains",
    "on",
    "small",
    "data",
    "and",
    "saves",
    "its",
    "state",
    "then",
    "it",
    "goes",
    "on",
    "from",
    "there",
]


def tokens(directory: Path) -> None:
    """Make random tokens of 64 kinds, as nanoGPT's prepare.py writes them."""
    chance = random.Random(SEED)
    (directory / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 64}))
    for name in ("train.bin", "val.bin"):
        numbers = [chance.randrange(64) for _ in range(20_000)]
        (directory / name).write_bytes(struct.pack(f"<{len(numbers)}H", *numbers))


def mnist(directory: Path) -> None:
    """Make the four files of MNIST with random digits: 1,600 to train on and 200 to test."""
    raw = directory / "MNIST" / "raw"
    raw.mkdir(parents=True)
    chance = random.Random(SEED)
    for part, count in (("train", 1600), ("t10k", 200)):
        images = struct.pack(">IIII", 0x803, count, 28, 28) + chance.randbytes(count * 28 * 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">II", 0x801, count) + bytes(i % 10 for i in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def images(directory: Path, counts: tuple[int, int] = (32, 8)) -> None:
    """Make two classes of noise in folders, for training and for validation."""
    from PIL import Image

    chance = random.Random(SEED)
    for part, count in zip(("train", "val"), counts, strict=True):
        for label in ("cats", "dogs"):
            folder = directory / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                noise = Image.frombytes("RGB", (64, 64), chance.randbytes(64 * 64 * 3))
                noise.save(folder / f"{number:03d}.jpg")


def few_images(directory: Path) -> None:
    """Make the same, for a program that makes the images large."""
    images(directory, (8, 2))


def boxes(directory: Path) -> None:
    """Make images with one box each, and the YAML file that YOLO reads."""
    from PIL import Image

    chance = random.Random(SEED)
    for part, count in (("train", 48), ("val", 8)):
        for kind in ("images", "labels"):
            (directory / kind / part).mkdir(parents=True)
        for number in range(count):
            noise = Image.frombytes("RGB", (64, 64), chance.randbytes(64 * 64 * 3))
            noise.save(directory / "images" / part / f"{number:03d}.jpg")
            label = directory / "labels" / part / f"{number:03d}.txt"
            label.write_text(f"{number % 2} 0.5 0.5 0.4 0.4\n")
    (directory / "Arial.ttf").touch()  # YOLOv5 would download it, and draws nothing here
    text = f"path: {directory.absolute()}\ntrain: images/train\nval: images/val\n"
    (directory / "data.yaml").write_text(f"{text}names: {{0: cat, 1: dog}}\n")


def words(directory: Path) -> None:
    """Make three files of random sentences."""
    chance = random.Random(SEED)
    for name, count in (("train.txt", 2000), ("valid.txt", 200), ("test.txt", 200)):
        sentences = (" ".join(chance.choices(WORDS, k=12)) for _ in range(count))
        (directory / name).write_text("\n".join(sentences) + "\n")


def language_model(directory: Path) -> None:
    """Make a tiny GPT-2 with random weights, its tokenizer, and sentences as JSON Lines."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", *sorted(set(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<eos>"}
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)
    whole.save_pretrained(directory / "model")
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 64}
    config = GPT2Config(vocab_size=len(vocabulary), bos_token_id=0, eos_token_id=0, **shape)
    GPT2LMHeadModel(config).save_pretrained(directory / "model")
    chance = random.Random(SEED)
    (directory / "data").mkdir()
    with (directory / "data" / "train.jsonl").open("w") as file:
        for _ in range(2000):
            file.write(json.dumps({"text": " ".join(chance.choices(WORDS, k=12))}) + "\n")


def unet(directory: Path) -> None:
    """Make the configuration of a small UNet, as diffusers reads it."""
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    shape = {"sample_size": 16, "in_channels": 3, "out_channels": 3, "layers_per_block": 1}
    widths = {"block_out_channels": [16, 32], "norm_num_groups": 8}
    config = {"_class_name": "UNet2DModel", **shape, **widths, **blocks}
    (directory / "config.json").write_text(json.dumps(config))


def clip(directory: Path) -> None:
    """Make the configuration of a small CLIP, as open_clip reads it."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    config = {"model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}}
    config["preprocess_cfg"] = {}
    (directory / "open_clip_config.json").write_text(json.dumps(config))


def glue(directory: Path) -> None:
    """Make what Accelerate's examples take from the hub: a tiny BERT, sentences, a metric."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    marks = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    vocabulary = {word: i for i, word in enumerate([*marks.values(), *sorted(set(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(
        directory / "bert-base-cased"
    )
    widths = {"hidden_size": 64, "intermediate_size": 128}
    config = BertConfig(
        vocab_size=len(vocabulary), num_hidden_layers=2, num_attention_heads=2, **widths
    )
    BertForSequenceClassification(config).save_pretrained(directory / "bert-base-cased")
    chance = random.Random(SEED)
    pairs = directory / "nyu-mll" / "glue"
    pairs.mkdir(parents=True)
    for name, count in (("train", 16_000), ("validation", 64)):
        with (pairs / f"{name}.jsonl").open("w") as file:
            for number in range(count):
                first, second = (" ".join(chance.choices(WORDS, k=12)) for _ in range(2))
                pair = {"sentence1": first, "sentence2": second, "label": number % 2, "idx": number}
                file.write(json.dumps(pair) + "\n")
    splits = "".join(
        f"  - split: {name}\n    path: {name}.jsonl\n" for name in ("train", "validation")
    )
    configs = f"---\nconfigs:\n- config_name: mrpc\n  data_files:\n{splits}---\n"
    (pairs / "README.md").write_text(configs)
    (directory / "glue").mkdir()
    (directory / "glue" / "glue.py").write_text(METRIC)


METRIC = """
import datasets
import evaluate


class Accuracy(evaluate.Metric):
    def _info(self):
        kinds = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=datasets.Features(kinds)
        )

    def _compute(self, predictions, references):
        right = sum(a == b for a, b in zip(predictions, references))
        return {"accuracy": right / len(references)}
"""
KINDS: dict[str, Callable[[Path], None]] = {
    "boxes": boxes,
    "clip": clip,
    "few-images": few_images,
    "glue": glue,
    "images": images,
    "language-model": language_model,
    "mnist": mnist,
    "tokens": tokens,
    "unet": unet,
    "words": words,
}


def main() -> None:
    """Make one kind of data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    KINDS[args.kind](args.directory)


if __name__ == "__main__":
    main()
