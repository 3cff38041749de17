"""Rendering of the report: ``report.html.j2`` with all sections."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from sepc_zoo import __version__
from sepc_zoo.data import Annotations
from sepc_zoo.evaluation.diagnosis import Diagnosis
from sepc_zoo.evaluation.metrics import FREQUENCIES, Evaluation, format_figure
from sepc_zoo.evaluation.report import charts, gallery, sections
from sepc_zoo.evaluation.report.context import ReportContext
from sepc_zoo.files import write_text
from sepc_zoo.metric_names import CLASS_METRICS, METRICS


def write_report(
    path: str | Path,
    annotations: Annotations,
    evaluation: Evaluation,
    diagnosis: Diagnosis,
    facts: Mapping[str, str],
) -> None:
    """Write the report of an evaluation: one HTML file that loads nothing else.

    Args:
        path: the HTML file.
        evaluation: may also have figures under ``errors``, ``intervals`` and ``voc``.
        diagnosis: of the same detections.
        facts: names and values for the head of the page, such as model and data set; the first
            value is the title.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with charts.style():
        html = _render(ReportContext(annotations, evaluation, diagnosis), facts)
    write_text(path, html)


def made_by() -> dict[str, str]:
    """When and by what a page is written, for its head."""
    return {"date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M}", "sepc_zoo": __version__}


def template(name: str) -> Template:
    """A template of this folder."""
    environment = Environment(
        loader=PackageLoader("sepc_zoo.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": format_figure, "thousands": "{:,}".format}
    return environment.get_template(name)


def _render(context: ReportContext, facts: Mapping[str, str]) -> str:
    return template("report.html.j2").render(
        facts=[*facts.items()][1:] + _facts(context),
        title=next(iter(facts.values()), "Evaluation"),
        metrics=context.evaluation.metrics,
        METRICS=METRICS,
        FREQUENCIES=FREQUENCIES,
        CLASS_METRICS=CLASS_METRICS,
        num_objects=int(context.num_objects.sum()),
        best=context.best,
        errors=sections.error_costs(context),
        outcomes=sections.outcomes(context),
        ap_charts=sections.ap_charts(context),
        classes=sections.class_rows(context),
        curves=sections.curves(context),
        confusion=sections.confusion(context),
        scores=sections.score_charts(context),
        false_positives=gallery.false_positives(context),
        misses=gallery.misses(context),
    )


def _facts(context: ReportContext) -> list[tuple[str, Any]]:
    crowds = sum(int(record.iscrowd.sum()) for record in context.annotations.records)
    return [
        ("images", f"{len(context.annotations.records):,}"),
        ("objects", f"{context.num_objects.sum():,}" + (f" and {crowds:,} crowds" * bool(crowds))),
        ("classes", f"{len(context.names):,}"),
        ("detections", f"{len(context.detections):,}"),
        *made_by().items(),
    ]
