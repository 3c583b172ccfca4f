"""The scripts of the page of notifications, run as --on-event runs them, against local servers."""

import asyncio
import json
import os
import shutil
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from orchestrator.config import Config
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.system.subprocesses import SubprocessRunner
from orchestrator.telemetry.event_hook import EventHook
from orchestrator.telemetry.notable_events import NotableEvent
from tests.e2e.hosts.need import skip_or_fail
from tests.test_how_to import DOCS, blocks

pytestmark = pytest.mark.processes

PAGE = DOCS / "how-to" / "notifications.md"
SCRIPTS = blocks(PAGE, "sh")
HOSTILE = "@/etc/hostname \"; touch pwned; '$(touch pwned)' `touch pwned` <b>\nSubject: x\n.\nend"


def script_with(word: str) -> str:
    """The first script of the page in which a word is."""
    return next(script for script in SCRIPTS if word in script)


@contextmanager
def serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    """Serve on a port of this machine during the block."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def web_server() -> Iterator[tuple[str, list[tuple[dict[str, str], str]]]]:
    """Serve HTTP; yield host and port, and a list of the headers and bodies that arrive."""
    arrived: list[tuple[dict[str, str], str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            arrived.append((dict(self.headers), body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with serving(Receiver) as port:
        yield f"127.0.0.1:{port}", arrived


@contextmanager
def mail_server() -> Iterator[tuple[str, list[str]]]:
    """Serve SMTP; yield the address, and a list of what arrives."""
    arrived: list[str] = []

    class Receiver(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            while words := self.rfile.readline().split():
                if words[0] == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = list(iter(self.rfile.readline, b".\r\n"))
                    arrived.append(b"".join(lines).decode())
                self.wfile.write(b"221 bye\r\n" if words[0] == b"QUIT" else b"250 well\r\n")

    with serving(Receiver) as port:
        yield f"smtp://127.0.0.1:{port}", arrived


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs a script of the page for an event, which must succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{tmp_path}:{os.environ['PATH']}")

    def run(script: str, event: JournalEvent, **facts: object) -> None:
        executable(tmp_path / "notify.sh", script)
        (tmp_path / "orchestrator.toml").write_text(blocks(PAGE, "toml")[0])
        command = Config.resolve({}, {}, tmp_path).on_event

        async def play() -> None:
            hook = EventHook(command, RunDir(tmp_path / "run"), SubprocessRunner())
            journal = Journal(tmp_path / "journal.jsonl")
            journal.listeners.append(hook.on_journal_event)
            journal.write(event, 2, **facts)
            await hook.finish(asyncio.Event())

        with capture_logs() as logs:
            asyncio.run(play())
        assert logs == []
        assert not (tmp_path / "pwned").exists()

    return run


def executable(path: Path, script: str) -> None:
    path.write_text(script)
    path.chmod(0o755)


def need(program: str) -> None:
    if shutil.which(program) is None:
        skip_or_fail(f"{program} is not installed")


def test_ntfy_gets_title_and_text(
    tell: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The topic gets the event as the title, and the reason letter by letter."""
    need("curl")
    with web_server() as (address, arrived):
        monkeypatch.setenv("NTFY_TOPIC", f"http://{address}/topic")
        tell(script_with("Title:"), JournalEvent.GAVE_UP, cause=HOSTILE, reason="enough", step=7)
    ((headers, body),) = arrived
    assert headers["Title"] == "training: gave_up"
    assert body == f"{tmp_path}/run, step 7: {HOSTILE}; enough"


def test_text_that_names_a_file_does_not_send_it(
    tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reason that curl could take for the name of a file is sent as it is."""
    need("curl")
    with web_server() as (address, arrived):
        monkeypatch.setenv("NTFY_TOPIC", f"http://{address}/topic")
        tell(script_with("Priority:"), JournalEvent.GAVE_UP, cause=HOSTILE)
    assert [(headers["Priority"], body) for headers, body in arrived] == [("urgent", HOSTILE)]


def test_events_that_are_not_wanted_send_nothing(
    tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script that chooses is silent about the others."""
    need("curl")
    with web_server() as (address, arrived):
        monkeypatch.setenv("NTFY_TOPIC", f"http://{address}/topic")
        for event in (JournalEvent.HANG_DETECTED, JournalEvent.RUN_COMPLETED):
            tell(script_with("Priority:"), event, seems="it waits")
    assert [headers["Priority"] for headers, _ in arrived] == ["default"]


def test_apprise_gets_title_and_text(
    tell: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real apprise sends both to a service, here to one of the plainest kind."""
    with web_server() as (address, arrived):
        monkeypatch.setenv("APPRISE_URLS", f"json://{address}/")
        tell(script_with("apprise"), JournalEvent.STALLED, reason=HOSTILE, step=7)
    ((_, body),) = arrived
    message = json.loads(body)
    assert message["title"] == "training: stalled"
    assert message["message"] == f"{tmp_path}/run, step 7: {HOSTILE}"


def test_mail_is_one_message_with_the_whole_text(
    tell: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line of the reason becomes a header, or ends the message."""
    need("curl")
    with mail_server() as (address, arrived):
        monkeypatch.setenv("MAIL_SERVER", address)
        monkeypatch.setenv("MAIL_FROM", "cluster@example.com")
        monkeypatch.setenv("MAIL_TO", "you@example.com")
        tell(script_with("MAIL_TO"), JournalEvent.GAVE_UP, cause=HOSTILE, step=7)
    (mail,) = arrived
    head, _, text = mail.replace("\r\n", "\n").partition("\n\n")
    assert head.splitlines() == [
        "From: cluster@example.com",
        "To: you@example.com",
        "Subject: training: gave_up",
    ]
    # A line with a dot alone has another one before it on its way.
    assert text == f"{tmp_path}/run, step 7: {HOSTILE}\n".replace("\n.\n", "\n..\n")


def test_desktop_gets_title_and_text(tell: Callable[..., None], tmp_path: Path) -> None:
    """The command gets two arguments, neither of which it takes for an option."""
    executable(tmp_path / "notify-send", f'#!/bin/sh\nprintf "%s|" "$@" > "{tmp_path}/sent"\n')
    tell(script_with("notify-send"), JournalEvent.CHECKPOINT_PUBLISHED, healthy=False, step=7)
    sent = (tmp_path / "sent").read_text().split("|")
    text = "the weights are not finite: nothing resumes from what is saved now"
    assert sent == ["--", "training: unhealthy", f"{tmp_path}/run, step 7: {text}", ""]


def test_page_has_every_event_and_no_other_script() -> None:
    """The page's table is complete, and each of its scripts is run by a test above."""
    assert all(f"| `{event}` |" in PAGE.read_text() for event in NotableEvent)
    words = ("Title:", "apprise", "MAIL_TO", "notify-send", "Priority:")
    assert sorted(map(script_with, words)) == sorted(SCRIPTS)
