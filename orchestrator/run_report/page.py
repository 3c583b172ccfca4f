"""The page of a report: HTML with everything in it, and no script."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.run_report.facts import ReportFacts
from orchestrator.run_report.svg_chart import HEIGHT, WIDTH
from orchestrator.system.local_time import local_time_text
from orchestrator.system.text import shown_line
from orchestrator.system.units import duration_text, size_text
from orchestrator.telemetry.progress import progress_text


def report_page(facts: ReportFacts) -> str:
    """Return the page; every text from outside is escaped, and has no control characters."""
    environment = Environment(
        loader=PackageLoader("orchestrator.run_report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.filters.update(
        duration=duration_text, size=size_text, number=_number, local_time=local_time_text
    )
    template = environment.get_template("report.html")
    progress = progress_text(facts.status["progress"])
    return template.render(facts=facts, progress=progress, width=WIDTH, height=HEIGHT)


def _harmless(value: Any) -> Any:
    return shown_line(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _number(value: Any) -> str:
    return f"{float(value):.5g}"
