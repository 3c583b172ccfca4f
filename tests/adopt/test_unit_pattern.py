"""Which paths belong together, and what each of them is called."""

from pathlib import Path

import pytest

from orchestrator.adopt.unit_pattern import UnitPattern


def unit(root: Path, *patterns: str) -> UnitPattern:
    return UnitPattern.parse("\n".join(f"{root}/{pattern}" for pattern in patterns))


@pytest.mark.parametrize(
    ("patterns", "found", "others"),
    [
        (["netG_*.pth", "netD_*.pth"], ["netG_5.pth", "netD_5.pth"], ["netG_6.pth"]),
        (["net{G,D}_*.pth"], ["netG_5.pth", "netD_5.pth"], ["netE_5.pth"]),
        (["*_net_{G_A,G_B,D}.pth"], [f"9_net_{n}.pth" for n in ("G_A", "G_B", "D")], []),
        (["gen/c_*.pt", "disc/c_*.pt"], ["gen/c_007.pt", "disc/c_007.pt"], ["disc/c_7.pt"]),
        (["e*/m_*.pt", "e*/o_*.pt"], ["e1/m_3.pt", "e1/o_3.pt"], ["e2/m_3.pt", "e1/m_2.pt"]),
        (["m_*.pt", "m_ema_*.pt"], ["m_5.pt", "m_ema_5.pt"], []),
        (["m_20??-*.pt", "o_20??-*.pt"], ["m_2026-01.pt", "o_2026-01.pt"], ["o_2026-02.pt"]),
        (["a[[]1]_*.pt", "b_*.pt"], ["a[1]_5.pt", "b_5.pt"], []),
        (["{G,D,optim}.pth"], ["G.pth", "D.pth", "optim.pth"], []),
    ],
)
def test_equal_wildcards_make_a_unit(
    tmp_path: Path, patterns: list[str], found: list[str], others: list[str]
) -> None:
    """Whatever the order in which the files come, the path of the first pattern stands for all."""
    for name in [*reversed(found), *others]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pattern = unit(tmp_path, *patterns)
    paths = tuple(tmp_path / name for name in found)
    assert paths[0] in pattern.find()[1]
    for path in paths:
        assert pattern.members(path) == paths
    whole = [key for key in pattern.find()[1] if all(p.exists() for p in pattern.members(key))]
    assert whole == [paths[0]]


def test_unit_without_its_first_file_is_found(tmp_path: Path) -> None:
    """What is missing may be the file that stands for the unit."""
    (tmp_path / "netD_5.pth").touch()
    pattern = unit(tmp_path, "net{G,D}_*.pth")
    assert pattern.find()[1] == [tmp_path / "netG_5.pth"]
    assert pattern.step_of(tmp_path / "netG_5.pth") == 5
    # No wildcard of the first pattern can stand for it.
    (tmp_path / "d_x.pth").touch()
    assert unit(tmp_path, "g_[0-9].pth", "d_*.pth").find()[1] == []


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["netG_epoch_*.pth", "netD_epoch_*.pth"], ("netG", "netD")),
        (["*_net_{G_A,G_B,D_A}.pth"], ("G_A", "G_B", "D_A")),
        (["{generator,discriminator}/c-*.pt"], ("generator", "discriminator")),
        (["netG.pth", "netD.pth", "optim.pth"], ("netG", "netD", "optim")),
        (["model_*.pt", "model_ema_*.pt"], ("path1", "ema")),
        (["out/{path,step}_*.pt"], ("path1", "path2")),
        (["out/{path2,x}_*.pt"], ("path1", "x")),
        (["path2_*.pt", "path2_*_.pt"], ("path1", "path2")),
        (["a-b/x*", "a+b/x*"], ("path1", "path2")),
    ],
)
def test_member_is_called_by_the_word_that_differs(
    tmp_path: Path, patterns: list[str], names: tuple[str, ...]
) -> None:
    """Where that is no word of its own, the member has its number."""
    assert unit(tmp_path, *patterns).names == names


def test_braces_are_those_of_a_shell(tmp_path: Path) -> None:
    """A brace without a comma, or in brackets, is an ordinary character."""
    for text, name in (("{a}_*.pt", "{a}_1.pt"), ("[{]a,b}_*.pt", "{a,b}_1.pt")):
        (tmp_path / name).touch()
        pattern = unit(tmp_path, text)
        assert [path.name for path in pattern.find()[1]] == [name]
    nested = unit(tmp_path, "{net{G,D},optim}_*.pt")
    assert nested.names == ("netG", "optim", "netD")


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        (["netG_*.pth", "optim.pth"], "different numbers of wildcards"),
        (["e*/netG_*.pth", "netD_*.pth"], "different numbers of wildcards"),
        (["c-*", "c-*/model.pt"], "is inside of"),
        (["c/model.pt", "c"], "is inside of"),
        (["net{G,}_*.pth", ""], "not the root|name the checkpoints|different"),
    ],
)
def test_patterns_that_are_no_unit_are_refused(
    tmp_path: Path, patterns: list[str], problem: str
) -> None:
    """It could not be told which files belong together."""
    with pytest.raises(ValueError, match=problem):
        unit(tmp_path, *patterns)
