"""Paths in the states of Lightning's callbacks, as another user may have written them."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xxhash
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from orchestrator.checkpoint.store import Store
from orchestrator.integrations.lightning_loop import KEY
from orchestrator.integrations.lightning_paths import with_checked_paths
from orchestrator.rundir.paths import RunDir
from tests.integrations.test_lightning import Fit, quiet

__all__ = ["quiet"]


def edit(run: Path, name: str) -> None:
    """Let the newest checkpoint of a run name this path, as a member of its group may."""
    newest = Store.open(RunDir(run), []).all()[-1]
    state = torch.load(newest.state_file, weights_only=True)
    for key, callback in state[KEY]["callbacks"].items():
        if key.startswith("ModelCheckpoint"):
            callback["best_model_path"] = name
            if callback["monitor"]:
                callback["kth_best_model_path"] = name
                callback["best_k_models"] = {name: torch.tensor(-1e9)}
    torch.save(state, newest.state_file)
    content = newest.state_file.read_bytes()
    manifest = json.loads((newest.path / "manifest.json").read_bytes())
    digest = xxhash.xxh3_128(content).hexdigest()
    manifest["files"]["state.pt"] = {"bytes": len(content), "xxh3_128": digest}
    (newest.path / "manifest.json").write_text(json.dumps(manifest))


def saving(own: Path, monitor: str | None) -> ModelCheckpoint:
    return ModelCheckpoint(own, monitor=monitor, save_top_k=1)


@pytest.mark.parametrize("monitor", [None, "train_loss"])
@pytest.mark.parametrize("form", ["local://{}", "file://{}", "{}", "{own}/../thesis"])
def test_path_elsewhere_is_neither_deleted_nor_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, monitor: str | None
) -> None:
    """A resume saves as if nothing had been saved, and says so once."""
    thesis, own = tmp_path / "thesis", tmp_path / "own"
    thesis.mkdir()
    (thesis / "precious").write_text("precious")
    options: dict[str, Any] = {"enable_checkpointing": True}
    Fit(tmp_path / "run", ("batch", 14), callbacks=[saving(own, monitor)], **options)
    edit(tmp_path / "run", form.format(thesis, own=own))
    capsys.readouterr()
    callback = saving(own, monitor)
    Fit(tmp_path / "run", callbacks=[callback], **options)
    assert (thesis / "precious").read_text() == "precious"
    assert Path(callback.best_model_path).parent == own
    assert capsys.readouterr().err.count("this is not used") == 1


def test_resume_that_only_the_script_has_saved_keeps_its_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Lightning saved itself is kept, and deleted by it when a better one comes."""
    own, options = tmp_path / "own", {"enable_checkpointing": True}
    Fit(tmp_path / "run", ("batch", 14), callbacks=[saving(own, None)], **options)
    (before,) = own.iterdir()
    callback = saving(own, None)
    Fit(tmp_path / "run", callbacks=[callback], **options)
    assert "this is not used" not in capsys.readouterr().err
    assert [str(path) for path in own.iterdir()] == [callback.best_model_path]
    assert not before.exists()


def test_best_checkpoint_of_the_version_before_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A logger names another directory at each start, and the best may be in an earlier one."""
    options: dict[str, Any] = {"enable_checkpointing": True}
    paths = []
    for _ in range(2):
        callback = ModelCheckpoint(save_top_k=1)
        logger = CSVLogger(tmp_path / "logs")
        Fit(tmp_path / "run", callbacks=[callback], logger=logger, **options)
        paths.append(Path(callback.best_model_path))
    assert paths[0] == paths[1]
    assert paths[0].parts[-3] == "version_0"
    assert "this is not used" not in capsys.readouterr().err


DIRECTORIES = {
    "/own": ["/own/a.ckpt", "/own/b/a.ckpt"],
    "/own/": ["/own/a.ckpt"],
    "own": ["own/a.ckpt"],
    "/logs/version_3/checkpoints": ["/logs/version_12/checkpoints/a.ckpt"],
    "s3://bucket/own": ["s3://bucket/own/a.ckpt"],
}
ELSEWHERE = [
    *("/home/thesis", "/own", "/own/", "/own/../x", "/own//x", "/own2/x", "own/../../x", "~/x"),
    *("local:///own/x", "file:///own/x", "http://host/x.ckpt", "s3://other/own/a.ckpt", "x\0y"),
    *("/own/x::http://host/x", "/logs/version_x/checkpoints/a", "/logs/version_3/other/a"),
    *(7, None, True, ["/own/x"], b"/own/x"),
]


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_only_paths_below_the_directory_are_kept(directory: str) -> None:
    """A path is kept as it is, or all of its state are forgotten."""
    callback = SimpleNamespace(state_key="C", dirpath=directory)

    def kept(path: Any) -> bool:
        state = {"best_model_path": path, "best_k_models": {}, "score": 3}
        checked = with_checked_paths({"C": state}, [callback])["C"]
        assert checked["score"] == 3
        return checked == state and state["best_model_path"] is checked["best_model_path"]

    assert all(map(kept, DIRECTORIES[directory]))
    assert not any(map(kept, ELSEWHERE if directory == "/own" else [*ELSEWHERE, "/own/a.ckpt"][:8]))


def test_link_below_the_directory_leads_nowhere_else(tmp_path: Path) -> None:
    """A link in the directory may name another checkpoint there, and nothing elsewhere."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "last.ckpt").symlink_to("a.ckpt")
    (own / "out").symlink_to(tmp_path)
    callback = SimpleNamespace(state_key="C", dirpath=str(own))
    states = {"C": {"last_model_path": str(own / "last.ckpt")}}
    assert with_checked_paths(states, [callback]) == states
    states = {"C": {"last_model_path": str(own / "out" / "thesis")}}
    assert with_checked_paths(states, [callback]) == {"C": {"last_model_path": ""}}


@pytest.mark.parametrize("states", [None, 3, [], "C", {"C": None}, {"C": 3}, {"C": []}])
def test_states_of_other_shapes_cause_no_error(states: Any) -> None:
    """A state without paths is not looked into."""
    callback = SimpleNamespace(state_key="C", dirpath=os.getcwd())
    assert with_checked_paths(states, [callback]) == (states if isinstance(states, dict) else {})


@pytest.mark.parametrize("scored", [3, ["/home/x"], {"/home/x": 1.0}, {3: 1.0}])
def test_scored_paths_are_checked(scored: Any) -> None:
    """The keys of best_k_models are paths too; of no known callback none is kept."""
    state = {"best_k_models": scored, "best_model_path": ""}
    expected = {"C": {"best_k_models": {}, "best_model_path": ""}}
    callback = SimpleNamespace(state_key="C", dirpath="/own")
    assert with_checked_paths({"C": state}, [callback]) == expected
    unknown = {"D": {"best_model_path": "/own/a.ckpt"}}
    assert with_checked_paths(unknown, [callback]) == {"D": {"best_model_path": ""}}
