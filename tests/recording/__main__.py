"""Record the demo: `python -m tests.recording`."""

from pathlib import Path

from tests.recording.svg import render
from tests.recording.terminal import record

ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "docs" / "assets" / "demo.svg"
TITLE = (
    "A terminal: training is stopped with Ctrl-C, resumed by the same command, killed with "
    "kill -9, back at once, and completed."
)


def main() -> None:
    """Run `make demo` and write what it showed."""
    frames = record(["make", "--no-print-directory", "-C", str(ROOT), "demo"], "$ make demo")
    RECORDING.parent.mkdir(exist_ok=True)
    RECORDING.write_text(render(frames, TITLE))
    print(f"{RECORDING.relative_to(ROOT)}: {len(frames)} frames, {RECORDING.stat().st_size} bytes")


if __name__ == "__main__":
    main()
