"""Import into a run and export from it on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from tests.e2e.support import Supervised, assert_all_valid, events, orchestrator, result_of

Start = Callable[..., Supervised]


def model() -> nn.Module:
    """Return a model like that of the training script."""
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Linear(16, 1))


def test_classic_file_is_imported_trained_and_exported(supervise: Start, tmp_path: Path) -> None:
    """An old script's file becomes a run, training continues, and its weights are exported."""
    old = model()
    content = {"epoch": 1, "step": 4, "model_state_dict": old.state_dict(), "loss": 2.5}
    torch.save(content, tmp_path / "old.pth")
    made = orchestrator("checkpoints", "import", "old.pth", "run", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    listed = orchestrator("checkpoints", "list", "run", cwd=tmp_path).stdout.splitlines()
    assert "imported" in listed[1]
    assert "APPROXIMATE" in listed[1]
    shown = json.loads(orchestrator("status", "run", "--json", cwd=tmp_path).stdout)
    assert (shown["state"], shown["step"], shown["epoch"]) == ("new", 4, 1)

    run = supervise("--epochs", "2", "--samples", "16", "--result", "result.pt")
    status, stdout, stderr = run.end()
    assert status == 0, stderr
    assert "begins at step 4" in stdout
    assert "no state of optimizer, scheduler: left as it is" in stdout
    assert events(run.run, "resumed")[0]["step"] == 4
    assert events(run.run, "run_completed")
    assert_all_valid(run.run, 2)

    out = ("checkpoints", "export", "run", "-o", "weights.safetensors")
    exported = orchestrator(*out, cwd=tmp_path)
    assert exported.stdout == "wrote weights.safetensors (step 8)\n", exported.stderr
    weights = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    for name, value in result_of(tmp_path / "result.pt")["model"].items():
        assert torch.equal(weights[name], value)  # type: ignore[arg-type]
    again = orchestrator(*out, cwd=tmp_path)
    assert again.returncode == 78
    assert again.stderr == (
        "cannot write weights.safetensors: the file exists; choose another name, or add --force\n"
    )


def test_import_of_another_kind_of_file_is_refused_in_one_line(tmp_path: Path) -> None:
    """A file that is no checkpoint is refused without a traceback, and changes nothing."""
    (tmp_path / "notes.txt").write_text("nothing to see here")
    refused = orchestrator("checkpoints", "import", "notes.txt", "run", cwd=tmp_path)
    assert refused.returncode == 78
    assert refused.stderr.startswith("cannot start from notes.txt: ")
    assert len(refused.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
