"""The metrics of runs in the text format of Prometheus; the only module with its library."""

from collections.abc import Iterable, Iterator

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from orchestrator.telemetry.metric_table import (
    METRICS,
    PREFIX,
    RUN_LABELS,
    StatusObject,
    run_labels,
)


def prometheus_text(statuses: Iterable[StatusObject]) -> bytes:
    """Return the metrics of the runs with these statuses, each as `status --json` has it."""
    return generate_latest(RunCollector(statuses))


class RunCollector(Collector):
    """Gives the library the metrics of some runs: for a file, or for a page that is scraped."""

    def __init__(self, statuses: Iterable[StatusObject]) -> None:
        self._runs: dict[tuple[str, ...], StatusObject] = {}
        for status in statuses:
            # A copy of a run directory has the same labels, which a scrape must not have twice.
            self._runs.setdefault(run_labels(status), status)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Return each metric that at least one of the runs has."""
        for metric in METRICS:
            family = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
            labels = [*RUN_LABELS, *metric.labels]
            found = family(PREFIX + metric.name, metric.help, labels=labels)
            for run, status in self._runs.items():
                for own, value in metric.samples(status):
                    found.add_metric([*run, *own], value)
            if found.samples:
                yield found
