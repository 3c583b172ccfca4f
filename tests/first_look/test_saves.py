"""What counts as a save, and the pattern that is derived from what was written."""

import os
import pickle
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from orchestrator.adopt.pattern import Pattern
from orchestrator.first_look.patterns import pattern_text
from orchestrator.first_look.saves import Saves, find_saves
from orchestrator.first_look.written_files import FileWatch, named_directories
from tests.support import NOBODY

STATE = pickle.dumps({"weights": [0.0] * 100})


def write(*names: str, content: bytes = STATE) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


class Script:
    """A script that is watched while the test writes in its place."""

    def __init__(self, *command: str) -> None:
        self.command = command
        self.watch = FileWatch([Path.cwd(), *named_directories(command)])

    def save(self, *names: str) -> None:
        """Write files, and let them come to rest."""
        write(*names)
        self.look()

    def look(self) -> None:
        for _ in range(2):
            self.watch.look(())

    def saves(self) -> Saves:
        saves = find_saves(self.watch.written.values())
        assert saves is not None
        return saves

    def pattern(self) -> str:
        group = self.saves().group
        text = pattern_text(group, self.command, self.watch.before)
        assert Pattern.parse(text).names(group.newest)
        return text


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    """Return a function that starts to watch a directory of its own."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return Script


PATTERNS = {
    "one file": (["last.pt"], ["last.pt"], "last.pt"),
    "one file, numbers in its name": (["gpt2-124.pt"], ["gpt2-124.pt"], "gpt2-124.pt"),
    "numbered": (["out/model_1.pt"], ["out/model_2.pt"], "out/model_*.pt"),
    "two numbers": (["o/epoch=0-step=5.ckpt"], ["o/epoch=1-step=9.ckpt"], "o/epoch=*-step=*.ckpt"),
    "constant number": (["o/v2_10.pt"], ["o/v2_20.pt"], "o/v2_*.pt"),
    "seen once": (["o/resnet50_epoch_1.pt"], [], "o/resnet50_epoch_*.pt"),
    "seen once, without a word": (["o/resnet50_7.pt"], [], "o/resnet50_*.pt"),
    "directories": (
        ["o/step_5/model.pt", "o/step_5/optim.pt"],
        ["o/step_10/model.pt", "o/step_10/optim.pt"],
        "o/step_*",
    ),
    "directories without a word": (["o/5/a.pt", "o/5/b.pt"], ["o/9/a.pt", "o/9/b.pt"], "o/*"),
    "directory seen once": (
        ["o/checkpoint-5/model.pt", "o/checkpoint-5/x.pt"],
        [],
        "o/checkpoint-*",
    ),
    "directory with shards": (
        ["o/global_step5/mp_rank_00.pt", "o/global_step5/mp_rank_01.pt"],
        [],
        "o/global_step*",
    ),
    "Trainer's directory": (["o/a/model.safetensors", "o/a/trainer_state.json"], [], "o/a"),
    "counted experiment": (["out/exp2/last.pt"], ["out/exp2/last.pt"], "out/exp*/last.pt"),
    "date": (["o/2026-01-31/last.pt"], ["o/2026-01-31/last.pt"], "o/*/last.pt"),
    "date and time": (
        ["o/2026-01-31/23-59-01/m_1.pt"],
        ["o/2026-01-31/23-59-01/m_2.pt"],
        "o/*/*/m_*.pt",
    ),
    "date in a name": (
        ["20260131-235901-vit/m_1.pt"],
        ["20260131-235901-vit/m_2.pt"],
        "*-vit/m_*.pt",
    ),
    "seconds since 1970": (["run_1769900000/m.pt"], ["run_1769900000/m.pt"], "run_*/m.pt"),
    "name of a model": (["out/gpt2/last.pt"], ["out/gpt2/last.pt"], "out/gpt2/last.pt"),
    "brackets": (["out[1]/last.pt"], ["out[1]/last.pt"], "out[[]1]/last.pt"),
    "best beside last": (["w/best.pt", "w/last.pt"], ["w/last.pt"], "w/last.pt"),
    "numbered beside last": (
        ["w/checkpoint-0.pth.tar", "w/last.pth.tar"],
        ["w/checkpoint-1.pth.tar", "w/last.pth.tar"],
        "w/checkpoint-*.pth.tar",
    ),
    "other files": (["data.npz", "log.json", "m_1.pt"], ["data.npz", "m_2.pt"], "m_*.pt"),
    "arrays alone": (["s_1.npz"], ["s_2.npz"], "s_*.npz"),
    "temporary names": (["tmp-checkpoint-5/m.pt", "last.pt"], ["last.pt"], "last.pt"),
    "no suffix": (["saved/latest"], ["saved/latest"], "saved/latest"),
}


@pytest.mark.parametrize(("first", "second", "wanted"), PATTERNS.values(), ids=PATTERNS.keys())
def test_pattern_of_saves(
    script: Callable[..., Script], first: Iterable[str], second: Iterable[str], wanted: str
) -> None:
    """Numbers of saves, dates and counts of starts become wildcards, and other names stay."""
    watched = script("python", "train.py")
    watched.save(*first)
    watched.save(*second)
    assert watched.pattern() == wanted


def test_directory_that_the_command_names_stays(script: Callable[..., Script]) -> None:
    """A number in it was chosen by a person, and does not change with the next start."""
    watched = script("python", "train.py", "--output_dir=out/exp2", "--day", "2026-01-31")
    watched.save("out/exp2/2026-01-31/last.pt")
    assert watched.pattern() == "out/exp2/2026-01-31/last.pt"


@pytest.mark.parametrize(
    ("earlier", "saved", "wanted"),
    [
        ("out/mine2/last.pt", "out/mine3/last.pt", "out/mine*/last.pt"),
        ("out/mine/last.pt", "out/mine2/last.pt", "out/mine*/last.pt"),
        ("out/other/last.pt", "out/mine3/last.pt", "out/mine3/last.pt"),
        ("out/best.pt", "out/last.pt", "out/last.pt"),
        ("mine_1/w/c_1.pt", "mine_2/w/c_1.pt", "mine_*/w/c_*.pt"),
    ],
)
def test_earlier_starts_show_what_changes(
    script: Callable[..., Script], earlier: str, saved: str, wanted: str
) -> None:
    """A directory that differs only in its count from one of an earlier start is such a count."""
    write(earlier)
    watched = script("python", "train.py")
    watched.save(saved)
    assert watched.pattern() == wanted


def test_files_that_are_saved_together_are_named(script: Callable[..., Script]) -> None:
    """Parts of one save have the same directory and numbers; a link to it and the best are none."""
    watched = script()
    for epoch in range(2):
        write(f"o/netG_{epoch}.pt", f"o/netD_{epoch}.pt", "o/best.pt")
        os.link(f"o/netG_{epoch}.pt", f"o/copy_{epoch}.pt")
        watched.look()
    saves = watched.saves()
    names = {saves.group.newest.name, *(part.newest.name for part in saves.parts)}
    assert len(saves.parts) == 1
    assert "netD_1.pt" in names


def test_best_model_is_no_part_of_a_save(script: Callable[..., Script]) -> None:
    """It is written beside the last one, but not each time; an optimizer's file is a part."""
    watched = script()
    for _ in range(2):
        watched.save("w/best.pt", "w/last.pt", "w/optimizer.pt")
    saves = watched.saves()
    names = {group.newest.name for group in (saves.group, *saves.parts)}
    assert names == {"last.pt", "optimizer.pt"}


def test_file_counts_when_it_is_at_rest(script: Callable[..., Script]) -> None:
    """Neither an empty file counts, nor one that is open, nor one from before the look."""
    write("old.pt")
    watched = script()
    write("new.pt")
    Path("empty.pt").touch()
    for _ in range(3):
        watched.watch.look({Path("new.pt").absolute()})
    assert not watched.watch.written
    watched.look()
    assert list(watched.watch.written) == [Path("new.pt").absolute()]
    assert find_saves([]) is None


def test_saves_elsewhere_are_seen(script: Callable[..., Script], tmp_path: Path) -> None:
    """A directory that the command names is watched, one of an open file, and a link's target."""
    disk, other = tmp_path / "disk", tmp_path / "other"
    disk.mkdir()
    Path("linked").symlink_to(disk)
    watched = script("python", "train.py", f"--out={tmp_path / 'named'}")
    write(str(tmp_path / "named" / "m_1.pt"), str(disk / "a.pt"))
    write(str(other / "step_1" / "x.pt"))
    watched.watch.look({other / "step_1" / "x.pt"})
    write(str(other / "step_2" / "x.pt"))
    watched.look()
    parents = {path.parent for path in watched.watch.written}
    assert parents == {
        tmp_path / "named",
        Path("linked").absolute(),
        other / "step_1",
        other / "step_2",
    }


def test_hidden_and_foreign_directories_are_not_watched(script: Callable[..., Script]) -> None:
    """Caches, environments and run directories hold no saves, but a new run is noticed."""
    watched = script()
    write(
        ".cache/m.pt", "env/pyvenv.cfg", "env/m.pt", "wandb/m.pt", "runs/a/run.json", "runs/a/m.pt"
    )
    watched.look()
    assert not watched.watch.written
    assert watched.watch.session_run == Path("runs/a").absolute()


def test_number_of_watched_names_has_a_limit(script: Callable[..., Script]) -> None:
    """Names in few levels come first, and those beside a file that the script has open."""
    write("m.pt", *(f"data/{i}.txt" for i in range(20)))
    watch = FileWatch([Path.cwd()], most_names=10)
    assert watch.was_cut_off
    write("m.pt", content=b"\x80new")
    os.utime("m.pt", ns=(time.time_ns(),) * 2)
    for _ in range(2):
        watch.look(())
    assert list(watch.written) == [Path("m.pt").absolute()]
    deep = Path("out/a/b/c/m.pt").absolute()
    write(str(deep))
    for open_files in ([], [], [deep]):
        watch.look(open_files)
        assert deep not in watch.written
    watch.look(())
    assert deep in watch.written


@pytest.mark.usefixtures("as_root")
def test_files_of_another_user_are_not_the_scripts(script: Callable[..., Script]) -> None:
    """What another user writes beside the script is not taken for its saves."""
    watched = script()
    watched.save("ckpt-1.pt", "ckpt-2.pt")
    write("theirs-1.pt", "theirs-2.pt", content=STATE * 9)
    for name in ("theirs-1.pt", "theirs-2.pt"):
        os.chown(name, NOBODY, NOBODY)
    write("run/run.json", content=b"{}")
    os.chown("run/run.json", NOBODY, NOBODY)
    watched.look()
    assert watched.pattern() == "ckpt-*.pt"
    assert watched.saves().parts == []
    assert watched.watch.session_run is None


def test_nothing_is_read_from_a_pipe_or_a_terminal(script: Callable[..., Script]) -> None:
    """What a script has open for writing is looked into only if it is a file."""
    watched = script()
    os.mkfifo("pipe")
    pipe = os.open("pipe", os.O_RDWR)
    controller, terminal = os.openpty()
    os.write(pipe, b"data for another reader")
    os.write(controller, b"typed\n")
    watched.watch.look({Path("pipe").absolute(), Path(os.ttyname(terminal))})
    assert os.read(pipe, 100) == b"data for another reader"
    assert os.read(terminal, 100) == b"typed\n"
    for descriptor in (pipe, controller, terminal):
        os.close(descriptor)
