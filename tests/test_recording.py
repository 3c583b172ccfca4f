"""The recording in the README: what it must be, and how it is made."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.recording.svg import LONGEST_SECONDS, durations, render
from tests.recording.terminal import LINES, Frame, Line, Span, record

ROOT = Path(__file__).parent.parent
RECORDING = ROOT / "docs" / "assets" / "demo.svg"


def frame(at_seconds: float, *texts: str) -> Frame:
    lines: list[Line] = [(Span(text, "default", False),) for text in texts]
    return Frame(at_seconds, tuple(lines + [()] * (LINES - len(lines))))


def words(svg: str) -> str:
    return " ".join(ElementTree.fromstring(svg).itertext())


def test_recording_in_the_repository_is_small_and_names_no_machine() -> None:
    """It is below 300 kB, shows all parts of the demo, and has no path of where it was made."""
    svg = RECORDING.read_text()
    shown = words(svg)
    assert len(svg) < 300_000
    for part in ("Ctrl-C", "s left", "the state is saved", "EXACT", "kill -9", "back at step"):
        assert part in shown
    assert "training is complete" in shown
    assert not re.search(r"(?<![\w.])/(?:tmp|home|root|work|usr|Users)/", shown)
    assert "prefers-reduced-motion" in svg
    assert "<script" not in svg
    assert not re.search(r"(?:href|src|url)\W+https?:", svg)


@pytest.mark.parametrize("name", ["demo.svg", "how-it-works.svg"])
def test_pictures_have_a_title(name: str) -> None:
    """A reader who does not see a picture hears what it shows."""
    root = ElementTree.fromstring((ROOT / "docs" / "assets" / name).read_text())
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert root.get("role") == "img"
    assert title is not None
    assert title.text


def test_recording_keeps_what_a_command_showed_and_when() -> None:
    """Colours, text and the order of the screens come through a real terminal."""
    code = r"print('one'); import time; time.sleep(0.3); print('\033[32mgreen\033[0m two')"
    frames = record([sys.executable, "-c", code], "$ demo")
    assert [line for line in frames[0].lines if line] == [(Span("$ demo", "default", False),)]
    assert frames[-1].lines[2] == (Span("green", "green", False), Span(" two", "default", False))
    one = next(frame for frame in frames if frame.lines[1])
    assert one.at_seconds < frames[-1].at_seconds


def test_recording_of_a_failing_command_fails() -> None:
    """No picture is made of a demo that has failed."""
    with pytest.raises(RuntimeError, match="status 3"):
        record([sys.executable, "-c", "raise SystemExit(3)"], "$ demo")


def test_recording_shortens_pauses_and_keeps_captions_longer() -> None:
    """A long wait is cut; a new caption stays long enough to be read."""
    frames = [
        frame(0.0, "a"),
        frame(60.0, "b"),
        frame(60.01, ">>> now"),
        frame(60.02, ">>> now", "c"),
    ]
    waited, _, caption, end = durations(frames)
    assert waited == LONGEST_SECONDS
    assert end > caption > LONGEST_SECONDS


def test_rendered_frames_share_their_lines() -> None:
    """A line that stays is written once, and special characters are escaped."""
    svg = render([frame(0.0, "<first> & last"), frame(1.0, "<first> & last", "second")], "a title")
    assert svg.count("&lt;first&gt; &amp; last") == 1
    assert svg.count('href="#l0"') == 2
