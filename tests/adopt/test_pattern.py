"""The pattern of --adopt."""

from pathlib import Path

import pytest

from orchestrator.adopt.pattern import Pattern


@pytest.mark.parametrize(
    ("pattern", "name", "step"),
    [
        ("checkpoint-*", "checkpoint-500", 500),
        ("*.ckpt", "epoch=3-step=1200.ckpt", 1200),
        ("*.ckpt", "epoch=3-step=1200-v1.ckpt", 1200),
        ("*.ckpt", "step=1200-loss=0.25.ckpt", 1200),
        ("model_*.pt", "model_0500.pt", 500),
        ("resnet50-*.pth", "resnet50-epoch3.pth", 3),
        ("e*_acc*.pt", "e12_acc0.91.pt", 12),
        ("global_step*", "global_step80", 80),
        ("m????.pt", "m0080.pt", 80),
        ("m[0-9][0-9].pt", "m07.pt", 7),
        ("*.ckpt", "last.ckpt", None),
        ("*.pt", "1732471234567.pt", None),
        ("m_*.pt", "m_2026-11-28_15-04-05.pt", None),
        ("m_*.pt", "m_20261128T150405.pt", None),
        ("m_*-*-*.pt", "m_2026-11-28.pt", None),
        ("m_*.pt", "m_20261128-1504_e3.pt", 3),
        ("m_*.pt", "m_20261300.pt", 20261300),
        ("model2.pt", "model2.pt", None),
    ],
)
def test_step_of_a_name(pattern: str, name: str, step: int | None) -> None:
    """The step is the number after that word, else the last where a wildcard is.

    No decimals and no dates: the seconds of a time would make an older one the newest.
    """
    assert Pattern.parse(pattern).step_of(Path.cwd() / name) == step


def test_find_matches_wildcards_in_several_components(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links and hidden names are passed over."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "logs/v_0/ck/a-1.pt",
        "logs/v_1/ck/a-2.pt",
        "logs/v_1/ck/b.pt",
        "logs/x/ck/a-3.pt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "logs/v_1/ck/a-latest.pt").symlink_to("a-2.pt")
    (tmp_path / "logs/v_1/ck/.a-9.pt").touch()
    directories, found = Pattern.parse("logs/v_*/ck/*a-*.pt").find()
    assert sorted(path.name for path in found) == ["a-1.pt", "a-2.pt"]
    names = {str(directory.relative_to(tmp_path)) for directory in directories}
    assert names == {"logs", "logs/v_0", "logs/v_1", "logs/v_0/ck", "logs/v_1/ck"}


def test_missing_directory_is_watched_from_its_nearest_parent(tmp_path: Path) -> None:
    """The nearest directory that exists is watched; what appears below it may be a match."""
    pattern = Pattern.parse(str(tmp_path / "out" / "deep" / "c-*"))
    assert pattern.find() == ([tmp_path], [])
    assert pattern.may_affect_match(str(tmp_path / "out"))
    assert pattern.may_affect_match(str(tmp_path / "out/deep/c-1/model.pt"))
    assert not pattern.may_affect_match(str(tmp_path / "out/deep/events.log"))
    assert not pattern.may_affect_match(str(tmp_path / "other"))


def test_pattern_without_wildcards_is_one_path(tmp_path: Path) -> None:
    """A link at that path is no checkpoint."""
    pattern = Pattern.parse(str(tmp_path / "last.pt"))
    assert pattern.is_one_path
    assert pattern.find() == ([tmp_path], [])
    (tmp_path / "last.pt").touch()
    assert pattern.find() == ([tmp_path], [tmp_path / "last.pt"])
    (tmp_path / "last.pt").unlink()
    (tmp_path / "last.pt").symlink_to("elsewhere.pt")
    assert pattern.find() == ([tmp_path], [])


def test_current_directory_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wildcards in its name are plain characters, and so are quoted ones in the pattern."""
    here = tmp_path / "lr[0.1] *?"
    (here / "out [a]").mkdir(parents=True)
    monkeypatch.chdir(here)
    (here / "out [a]" / "last.pt").touch()
    (here / "c-1.pt").touch()
    assert Pattern.parse("c-*.pt").find()[1] == [here / "c-1.pt"]
    assert Pattern.parse("../lr[[]0.1] [*][?]/c-*.pt").find()[1] == [here / "c-1.pt"]
    one = Pattern.parse("out [[]a]/last.pt")
    assert one.is_one_path
    assert one.find()[1] == [here / "out [a]" / "last.pt"]


def test_brackets_match_as_in_a_shell(tmp_path: Path) -> None:
    """A backslash, a ^ or a second [ is an ordinary character."""
    for name in ("d", "5", "\\", "^", "[", "b"):
        (tmp_path / name).touch()
    names = {
        text: {path.name for path in Pattern.parse(f"{tmp_path}/{text}").find()[1]}
        for text in ("[\\d]", "[^b]", "[![b]", "[a-c]")
    }
    assert names == {
        "[\\d]": {"\\", "d"},
        "[^b]": {"^", "b"},
        "[![b]": {"d", "5", "\\", "^"},
        "[a-c]": {"b"},
    }


def test_paths_inside_a_match_are_covered(tmp_path: Path) -> None:
    """A run directory there would be taken for a checkpoint, or a part of one."""
    pattern = Pattern.parse(f"{tmp_path}/*")
    assert pattern.covers(tmp_path / "runs" / "train")
    assert not pattern.covers(tmp_path)
    assert not pattern.covers(tmp_path.parent / "runs" / "train")
    assert Pattern.parse(str(tmp_path)).covers(tmp_path / "runs")
    assert not Pattern.parse(f"{tmp_path}/runs/*/c-*").covers(tmp_path / "runs" / "train")


@pytest.mark.parametrize("text", ["", "  ", "out/**/a.pt", "/", "out/step-[z-a].pt"])
def test_pattern_that_cannot_be_meant_is_refused(text: str) -> None:
    """An empty pattern, ** or the root directory is refused."""
    with pytest.raises(ValueError, match="name"):
        Pattern.parse(text)
