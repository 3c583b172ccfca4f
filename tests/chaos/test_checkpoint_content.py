"""What of a framework's checkpoint is compared, and what is not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.chaos.checkpoint_content import content_of
from orchestrator.chaos.final_state import differences
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import FileRecord, Manifest, Reason

Files = dict[str, Any]


def files() -> Files:
    """Return what a Trainer saves, by the names of its files."""
    return {
        "model.safetensors": {"w": torch.arange(4.0), "b": torch.zeros(2)},
        "adapter/adapter.safetensors": {"a": torch.ones(1)},
        "optimizer.pt": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "rng_state.pth": {"cpu": torch.zeros(4, dtype=torch.uint8)},
        "old.bin": b"of another format",
        "training_args.bin": {"output_dir": "here"},
        "README.md": b"made today",
        "trainer_state.json": {
            "global_step": 8,
            "best_model_checkpoint": "here/checkpoint-4",
            "log_history": [{"step": 4, "loss": 0.5}],
            "stateful_callbacks": {"A": [{"n": 1}, {"n": 2}], "B": {"n": 3}},
        },
    }


def checkpoint_of(directory: Path, contents: Files) -> Checkpoint:
    for name, value in contents.items():
        file = directory / "content" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, bytes):
            file.write_bytes(value)
        elif name.endswith(".safetensors"):
            save_file(value, file, metadata={"format": "pt"})
        elif name.endswith(".json"):
            file.write_text(json.dumps(value))
        else:
            torch.save(value, file)
    manifest = Manifest(
        run_id="run",
        step=8,
        epoch=1,
        reason=Reason.FINAL,
        metrics={},
        healthy=True,
        time="2026-11-30T00:00:00+00:00",
        files={name: FileRecord(1, "") for name in contents},
        versions={},
        framework="transformers",
    )
    return Checkpoint(directory, manifest, pinned=False)


def change_log(contents: Files) -> None:
    records = contents["trainer_state.json"]
    records["log_history"].append({"step": 8})
    records["best_model_checkpoint"] = "there/checkpoint-4"
    records["stateful_callbacks"]["A"].insert(0, {"n": 0})


def change_settings(contents: Files) -> None:
    contents["training_args.bin"]["output_dir"] = "there"
    contents["README.md"] = b"made tomorrow"


@pytest.mark.parametrize("change", [change_log, change_settings])
def test_what_a_resume_or_a_place_changes_is_not_compared(
    tmp_path: Path, change: Callable[[Files], None]
) -> None:
    """The Trainer's log, the paths in its files and its texts for people are left out."""
    changed = files()
    change(changed)
    contents = [
        content_of(checkpoint_of(tmp_path / name, each))
        for name, each in (("a", files()), ("b", changed))
    ]
    assert differences(*contents) == []


@pytest.mark.parametrize(
    ("name", "keys", "value", "path"),
    [
        ("model.safetensors", ["w"], torch.tensor([0.0, 1, 2, 3.0000002]), "model.safetensors.w"),
        ("model.safetensors", ["b"], -torch.zeros(2), "model.safetensors.b"),
        ("adapter/adapter.safetensors", ["a"], torch.zeros(1), "adapter/adapter.safetensors.a"),
        ("optimizer.pt", ["state", 0, "exp_avg"], torch.zeros(2), "optimizer.pt.state.0.exp_avg"),
        ("rng_state.pth", ["cpu"], torch.ones(4, dtype=torch.uint8), "rng_state.pth.cpu"),
        ("trainer_state.json", ["global_step"], 9, "trainer_state.json.global_step"),
        (
            "trainer_state.json",
            ["stateful_callbacks", "B", "n"],
            4,
            "trainer_state.json.stateful_callbacks.B.n",
        ),
    ],
)
def test_each_change_is_named(
    tmp_path: Path, name: str, keys: list[Any], value: Any, path: str
) -> None:
    """A value that differs in its last bit is found, and named by its file and its path there."""
    changed = files()
    *parents, last = keys
    inside = changed[name]
    for key in parents:
        inside = inside[key]
    inside[last] = value
    one = content_of(checkpoint_of(tmp_path / "a", files()))
    assert differences(one, content_of(checkpoint_of(tmp_path / "b", changed))) == [path]


def test_file_of_another_format_is_compared_as_a_whole(tmp_path: Path) -> None:
    """A file that is not what its name says is compared by its bytes."""
    names = ("old.bin", "model.safetensors", "trainer_state.json")
    one, other = (dict.fromkeys(names, byte * 9) for byte in (b"1", b"2"))
    contents = [
        content_of(checkpoint_of(tmp_path / name, each))
        for name, each in (("a", one), ("b", other))
    ]
    assert differences(*contents) == sorted(names)


def test_parts_of_all_ranks_are_compared(tmp_path: Path) -> None:
    """What each rank has saved of its own is compared, by the name of its file.

    A digest of the random streams is not: the streams are, where the script seeds them.
    """
    contents = []
    for name, mean in (("a", 0.0), ("b", 1.0)):
        checkpoint = checkpoint_of(tmp_path / name, {})
        checkpoint.path.mkdir()
        torch.save({"step": 8}, checkpoint.path / "state.pt")
        part = {"buffers": {"mean": mean}, "digests": {"rng": str(mean)}}
        torch.save(part, checkpoint.path / "rank-00001.pt")
        manifest = replace(checkpoint.manifest, framework=None, world_size=2)
        contents.append(content_of(replace(checkpoint, manifest=manifest)))
    assert differences(*contents) == ["rank-00001.pt.buffers.mean"]
