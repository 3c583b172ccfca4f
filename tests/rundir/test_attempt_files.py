"""The files of an attempt and of each of its ranks: no link leads them out of the run."""

import os
from pathlib import Path

import pytest

from orchestrator.rundir.paths import RunDir, real_parents_of, run_root_above
from orchestrator.system.durable import write_json
from orchestrator.system.regular_files import open_regular


@pytest.mark.parametrize("rank", [0, 1, 123456])
@pytest.mark.parametrize("linked", ["attempts", "attempts/0001", "attempts/0001/rank"])
def test_files_of_an_attempt_are_behind_no_link(tmp_path: Path, rank: int, linked: str) -> None:
    """A link in the place of any directory between a run and a rank's files leads nowhere."""
    run, home = RunDir(tmp_path / "run"), RunDir(tmp_path / "home")
    directory = run.attempt(1).rank(rank)
    above = directory.root if linked.endswith("rank") else run.root / linked
    for root in (directory.root, home.attempt(1).rank(rank).root):
        root.mkdir(parents=True)
    assert {run_root_above(file) for file in directory.all_paths} == {run.root}
    above.rename(tmp_path / "moved")
    above.symlink_to(home.root / above.relative_to(run.root))
    for file in directory.all_paths:
        with pytest.raises(OSError, match="link"):
            os.close(open_regular(file, os.O_CREAT, real_parents=real_parents_of(file)))
        with pytest.raises(OSError, match="link|Not a directory"):
            write_json(file, {}, below=run_root_above(file))
    assert [path for path in home.root.rglob("*") if not path.is_dir()] == []
