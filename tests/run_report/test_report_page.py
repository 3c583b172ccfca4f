"""The page that `orchestrator report` writes."""

import contextlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cli.parser import parse
from orchestrator.errors import ConfigError
from orchestrator.run_report.facts import report_facts
from orchestrator.run_report.page import report_page
from orchestrator.run_report.remarks import remarks
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from tests.checkpoint.support import RUN_ID, new_store, publish

HOSTILE = "<script>alert(1)</script>\x1b[2J\"'&"
VOID = {"meta", "line", "polyline"}


class Page(HTMLParser):
    """Collects the tags, their attributes and the text, and checks that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))


def page_of(run: RunDir) -> Page:
    return Page(report_page(report_facts(run)))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of two attempts, the first of which was killed."""
    store = new_store(tmp_path / "run", (10, 20))
    run = store.run
    identity = {"run_id": RUN_ID, "command": ["python", "train.py", HOSTILE], "created": "now"}
    run.run_file.write_text(json.dumps({"format_version": 1, **identity}))
    publish(store, 30, metrics={HOSTILE: 0.5})
    journal = Journal(run.journal_file)
    journal.write(JournalEvent.RUN_STARTED)
    journal.write(JournalEvent.ATTEMPT_STARTED, 1, resume_step=None)
    journal.write(
        JournalEvent.ATTEMPT_EXITED, 1, kind="killed", cause=f"killed {HOSTILE}", step=20, seconds=9
    )
    journal.write(JournalEvent.ATTEMPT_STARTED, 2, resume_step=20, from_memory=True)
    journal.write(JournalEvent.CHECKPOINT_FAILED, 2, problem="no space left")
    journal.write(JournalEvent.RUN_COMPLETED, 2, step=30, epoch=3)
    lines = [{"step": s, "metrics": {"loss": 30 - s, HOSTILE: s}} for s in range(31)]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = run.attempt(2).output_file
    output.parent.mkdir()
    output.write_text(f"epoch 3\n{HOSTILE}\n")
    return run


def test_report_tells_what_happened(run: RunDir) -> None:
    """Attempts, checkpoints, curves, and what to look at are on one page."""
    page = page_of(run)
    for text in ("completed", "loss: 0", "step-000000000030", "20, from memory"):
        assert text in page.texts, text
    assert any(text.startswith("epoch 3") for text in page.texts)
    assert "a save failed: no space left" in page.texts
    charts = [attributes for tag, attributes in page.tags if tag == "polyline"]
    assert len(charts) == 2
    points = [tuple(map(float, p.split(","))) for p in str(charts[0]["points"]).split()]
    assert (points[0], points[-1]) == ((0.0, 0.0), (720.0, 180.0))
    (restart, _) = [attributes["x1"] for tag, attributes in page.tags if tag == "line"]
    assert float(str(restart)) == pytest.approx(480)


def test_what_a_person_should_look_at_is_named() -> None:
    """Failed attempts, a stall and weights that are not finite keep a run from being well."""
    status = {"problem": None}
    assert remarks(status, [{"event": "checkpoint_published", "healthy": True}]) == []
    found = remarks(
        status,
        [
            {"event": "attempt_exited", "outcome": "failed"},
            {"event": "checkpoint_published", "healthy": False},
            {"event": "stalled", "reason": "no new checkpoint for 3 h"},
            {"event": "replicas_differ", "tensors": ["a", "b"]},
        ],
    )
    assert found == [
        "the ranks held different values: a, b",
        "no checkpoint came for long: no new checkpoint for 3 h",
        "a checkpoint has values that are not finite",
        "an attempt failed: the table below says how",
    ]


def test_nothing_from_outside_is_markup(run: RunDir) -> None:
    """Names, causes and output are shown as text, and the page loads and runs nothing."""
    page = page_of(run)
    assert not {"script", "link", "img", "iframe", "form"} & {tag for tag, _ in page.tags}
    attributes = [name for _, found in page.tags for name in found]
    assert not [name for name in attributes if name in ("src", "href") or name.startswith("on")]
    (policy,) = [a for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy["content"]).startswith("default-src 'none'")
    assert "\x1b" not in "".join(page.texts)
    assert any("killed <script>alert(1)</script>\\x1b[2J" in text for text in page.texts)


def test_run_without_anything_has_a_report(tmp_path: Path) -> None:
    """A run that has only begun has no curves and no checkpoints, and says so."""
    page = page_of(new_store(tmp_path / "run").run)
    assert "There is none." in page.texts
    assert "The journal has no attempt of a supervisor." in page.texts


def test_command_writes_the_page(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An earlier report is replaced, and a place that cannot be written is named."""
    monkeypatch.chdir(tmp_path)
    Path("report.html").write_text("an earlier one")
    arguments = parse(["report", str(run.root)])
    arguments.run_command(arguments)
    assert capsys.readouterr().out == "wrote report.html\n"
    assert Path("report.html").read_text().startswith("<!doctype html>")
    arguments = parse(["report", str(run.root), "-o", "none/report.html"])
    with pytest.raises(ConfigError, match="cannot write none/report.html: No such file"):
        arguments.run_command(arguments)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = ["attempt", "step", "time", "cause", "reason", "seconds", "lost_seconds", "problem"]
events = st.fixed_dictionaries(
    {"event": st.sampled_from([*JournalEvent])},
    optional=dict.fromkeys([*NAMES, "resume_step", "seems", "tensors"], values),
)


@settings(max_examples=60)
@given(st.lists(events, max_size=6), st.lists(values | st.binary(max_size=9), max_size=4), values)
def test_any_content_has_a_report_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, journal: list[Any], lines: list[Any], identity: Any
) -> None:
    """Wrong types, torn lines and binary give a page or a ConfigError, and no traceback."""
    run = new_store(tmp_path_factory.mktemp("any") / "run").run
    run.journal_file.write_text("".join(json.dumps(event) + "\n" for event in journal))
    run.metrics_file.write_bytes(b"\n".join(_encoded(line) for line in lines))
    known = {"format_version": 1, "run_id": RUN_ID}
    run.run_file.write_text(json.dumps({**known, "command": identity, "created": identity}))
    with contextlib.suppress(ConfigError):
        page_of(run)


def _encoded(line: Any) -> bytes:
    return line if isinstance(line, bytes) else json.dumps(line).encode()
