"""Turns the frames of a terminal into one animated SVG that needs no script and no network."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from tests.recording.terminal import COLUMNS, LINES, Frame, Line, Span

LONGEST_SECONDS = 0.7  # a pause in which nothing happens is cut to this
CAPTION_SECONDS = 2.2  # a new line of the demo's own words stays at least as long
COUNTDOWN_SECONDS = 0.9
SHORTEST_SECONDS = 0.15
END_SECONDS = 6.0

CHARACTER, LINE, SIZE = 8.43, 18, 14
MARGIN, BAR = 14, 30
COLORS = {
    "default": "#d5d9e0",
    "green": "#7ec98f",
    "brown": "#e0b566",
    "magenta": "#c99ae0",
    "cyan": "#6cc4cf",
    "red": "#ec7f86",
    "blue": "#7aa8f0",
}


def durations(frames: Sequence[Frame]) -> list[float]:
    """Return for how many seconds each frame is shown: its own time, within limits."""
    seconds = [min(b.at_seconds - a.at_seconds, LONGEST_SECONDS) for a, b in pairwise(frames)]
    seconds.append(END_SECONDS)
    shown: set[str] = set()
    for number, frame in enumerate(frames):
        new = {text for text in map(_text, frame.lines) if text} - shown
        shown |= new
        least = SHORTEST_SECONDS
        if any(">>>" in text for text in new):
            least = CAPTION_SECONDS
        elif any(text.endswith("s left") for text in map(_text, frame.lines)):
            least = COUNTDOWN_SECONDS
        seconds[number] = max(seconds[number], least)
    return seconds


def render(frames: Sequence[Frame], title: str) -> str:
    """Return the SVG: every frame below the other, moved through a window step by step."""
    width = round(2 * MARGIN + COLUMNS * CHARACTER)
    height = BAR + LINES * LINE + MARGIN
    names: dict[Line, str] = {}
    film = "".join(
        _use(names, line, number * LINES + row)
        for number, frame in enumerate(frames)
        for row, line in enumerate(frame.lines)
        if line
    )
    times = durations(frames)
    total = sum(times)
    window = LINES * LINE
    at = [sum(times[:number]) / total for number in range(len(frames))]
    steps = "".join(
        f"{100 * moment:.3f}%{{transform:translateY({-number * window}px)}}"
        for number, moment in enumerate(at)
    )
    last = -(len(frames) - 1) * window
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-labelledby="title">\n'
        f'<title id="title">{escape(title)}</title>\n'
        "<style>\n"
        f"@keyframes play{{{steps}100%{{transform:translateY({last}px)}}}}\n"
        f"#film{{animation:play {total:.2f}s steps(1,end) infinite}}\n"
        f"@media (prefers-reduced-motion:reduce)"
        f"{{#film{{animation:none;transform:translateY({last}px)}}}}\n"
        f"text{{font:{SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',"
        f"'Liberation Mono',monospace;fill:{COLORS['default']};white-space:pre}}\n"
        ".bold{font-weight:bold;fill:#fff}\n"
        + "".join(f".{name}{{fill:{color}}}\n" for name, color in COLORS.items())
        + "</style>\n<defs>\n"
        + "".join(_definition(name, line) for line, name in names.items())
        + f'<clipPath id="window"><rect width="{width}" height="{window}"/></clipPath>\n</defs>\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="#1b1e24"/>\n'
        '<circle cx="20" cy="15" r="5" fill="#ec7f86"/><circle cx="38" cy="15" r="5" '
        'fill="#e0b566"/><circle cx="56" cy="15" r="5" fill="#7ec98f"/>\n'
        f'<g transform="translate({MARGIN},{BAR})" clip-path="url(#window)"><g id="film">'
        f"{film}</g></g>\n</svg>\n"
    )


def _text(line: Line) -> str:
    return "".join(span.text for span in line)


def _use(names: dict[Line, str], line: Line, row: int) -> str:
    name = names.setdefault(line, f"l{len(names)}")
    return f'<use href="#{name}" y="{row * LINE}"/>'


def _definition(name: str, line: Line) -> str:
    column, parts = 0, []
    for span in line:
        parts.append(_span(span, column))
        column += len(span.text)
    return f'<text id="{name}" y="{SIZE}">{"".join(parts)}</text>\n'


def _span(span: Span, column: int) -> str:
    """Return a span with its place and width given, so that every font keeps the columns."""
    stripped = span.text.strip()
    if not stripped:
        return ""
    column += len(span.text) - len(span.text.lstrip())
    kind = "bold" if span.bold and span.color == "default" else span.color
    kind = "" if kind == "default" else f' class="{kind}"'
    return (
        f'<tspan x="{column * CHARACTER:.1f}" textLength="{len(stripped) * CHARACTER:.1f}"{kind}>'
        f"{escape(stripped, quote=False)}</tspan>"
    )
