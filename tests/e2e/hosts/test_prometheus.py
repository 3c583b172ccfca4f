"""What a real Prometheus makes of the metrics, of the alert rules and of the dashboard."""

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from orchestrator.telemetry.metric_table import METRICS, PREFIX
from orchestrator.telemetry.prometheus import prometheus_text
from tests.e2e.hosts.need import skip_or_fail
from tests.e2e.hosts.slurm_cluster import free_port
from tests.e2e.support import wait_for
from tests.telemetry.support import FULL

EXAMPLES = Path(__file__).parents[3] / "examples" / "observability"
PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "prometheus.md").read_text()
ALERTS = (EXAMPLES / "alerts.yml").read_text()
DASHBOARD = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
# What Grafana puts in the place of its variables.
VARIABLES = {"$run": ".*", "$metric": ".*", "$__rate_interval": "1m"}


def program(name: str) -> str:
    if not (found := shutil.which(name)):
        skip_or_fail(f"{name} is not installed")
    return found


def promtool(*arguments: str, **options: Any) -> str:
    """Run promtool in the folder of the examples; return what it prints."""
    words = [program("promtool"), *arguments]
    ended = subprocess.run(
        words, cwd=EXAMPLES, capture_output=True, text=True, timeout=60, **options
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@contextmanager
def running(*words: str) -> Iterator[None]:
    """Run a server; end it after the block."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait(20)


def answer_to(url: str) -> dict[str, Any]:
    """Return the answer of a server's interface; empty while it is not ready."""
    try:
        with urllib.request.urlopen(url, timeout=20) as reply:
            content: dict[str, Any] = json.load(reply)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
            return {}
        pytest.fail(f"{url}: {error.read().decode()}")
    except OSError:
        return {}
    return content


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a Prometheus that scrapes a node exporter with the files of two runs."""
    exporter, prometheus = program("prometheus-node-exporter"), program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    failed = replace(FULL, run_id="4567", run_dir="runs/failed", state="failed")
    for status in (FULL, failed):
        (folder / f"{status.run_id}.prom").write_bytes(prometheus_text([status.to_json()]))
    node, port = (f"127.0.0.1:{free_port()}" for _ in range(2))
    configuration = (EXAMPLES / "prometheus.yml").read_text()
    for shown, here in (("localhost:9100", node), ("15s", "250ms")):
        assert shown in configuration
        configuration = configuration.replace(shown, here)
    (folder / "prometheus.yml").write_text(configuration)
    (folder / "alerts.yml").write_text(ALERTS)
    with ExitStack() as stack:
        stack.enter_context(
            running(
                exporter,
                "--collector.disable-defaults",
                "--collector.textfile",
                f"--collector.textfile.directory={folder}",
                f"--web.listen-address={node}",
            )
        )
        stack.enter_context(
            running(
                prometheus,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={port}",
            )
        )
        yield f"http://{port}/api/v1"


def query(server: str, expression: str) -> list[dict[str, Any]]:
    """Return the series that an expression gives now; fail if it is not accepted."""
    content = answer_to(f"{server}/query?{urllib.parse.urlencode({'query': expression})}")
    series: list[dict[str, Any]] = content.get("data", {}).get("result", [])
    return series


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_format_and_names_are_those_that_prometheus_wants() -> None:
    """Its own checker of metrics finds nothing to complain of."""
    assert promtool("check", "metrics", input=prometheus_text([FULL.to_json()]).decode()) == ""


def test_every_alert_rule_has_a_test_that_passes() -> None:
    """The rules are right and say what their tests expect."""
    assert "SUCCESS" in promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")
    tests = (EXAMPLES / "alerts_test.yml").read_text()
    for alert in re.findall(r"- alert: (\w+)", ALERTS):
        assert re.search(rf"alertname: {alert}\n +exp_alerts", tests), alert


def test_rules_and_dashboard_use_metrics_that_exist() -> None:
    """Every name in them is in the table of metrics."""
    known = {PREFIX + metric.name for metric in METRICS}
    used = set(re.findall(rf"{PREFIX}\w+", "\n".join([ALERTS, *expressions()])))
    assert used <= known
    assert len(used) > 15


def test_exported_runs_are_in_prometheus(server: str) -> None:
    """Both runs arrive with all that is known of them, and no file has an error."""
    wait_for(lambda: len(query(server, "orchestrator_run_info")) == 2, "the runs")
    names = {each["metric"]["__name__"] for each in query(server, '{run_id="0123"}')}
    assert {PREFIX + metric.name for metric in METRICS} <= names
    (errors,) = query(server, "node_textfile_scrape_error")
    assert errors["value"][1] == "0"


def test_every_panel_of_the_dashboard_has_data(server: str) -> None:
    """Each expression is accepted and gives series for a run of which all is known."""
    for expression in expressions():
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        assert "$" not in expression
        wait_for(lambda e=expression: query(server, e), expression)  # type: ignore[misc]


def test_queries_of_the_page_have_answers(server: str) -> None:
    """Each query of the how-to page is accepted, and gives what it is asked for."""
    queries = re.findall(r"^\| .* \| `(.*)` \|$", PAGE, re.MULTILINE)
    assert len(queries) > 4
    for expression in queries:
        wait_for(lambda e=expression: query(server, e), expression)  # type: ignore[misc]


def test_rules_are_evaluated(server: str) -> None:
    """Prometheus evaluates each rule without an error, and the failed run is an alert."""

    def firing() -> list[dict[str, Any]]:
        alerts = answer_to(f"{server}/alerts").get("data", {}).get("alerts", [])
        return [alert["labels"] for alert in alerts if alert["state"] == "firing"]

    wait_for(lambda: "failed" in [labels["run"] for labels in firing()], "the alert")
    assert {(labels["alertname"], labels["run"]) for labels in firing()} >= {
        ("TrainingFailed", "failed")
    }
    (group,) = answer_to(f"{server}/rules")["data"]["groups"]
    assert [rule["name"] for rule in group["rules"] if rule["health"] != "ok"] == []
    assert len(group["rules"]) == ALERTS.count("expr:")
