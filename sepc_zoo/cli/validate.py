"""Measure the COCO mAP of a model, or of saved detections, on a data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepc_zoo.api.options import EvaluationOptions
from sepc_zoo.api.validate import (
    Detected,
    detect,
    evaluate_figures,
    read_detections,
    write_results,
)
from sepc_zoo.errors import ConfigError
from sepc_zoo.metric_names import AP_METRICS
from sepc_zoo.options import option
from sepc_zoo.terminal import counted, make_console, say


@dataclass(frozen=True, kw_only=True)
class Arguments(EvaluationOptions):
    """Validation."""

    model: str | None = option(
        None,
        "model folder, hf-hub:org/repo, exported file, or name of a model with published weights",
        metavar="NAME_OR_DIR",
    )
    from_json: str | None = option(
        None,
        "saved detections instead of a model: COCO results, or what sepc-zoo predict wrote",
        metavar="FILE",
    )
    output: str = option("validation", "folder to write", metavar="DIR")


def run(arguments: Arguments) -> int:
    """Validate, write ``metrics.json``, ``detections.json`` and the report, print a table."""
    from sepc_zoo.ops.distributed import on_main_process

    file, model = arguments.from_json, arguments.model
    if file is not None:
        detected, source = read_detections(arguments, file), f"Detections of {Path(file).name}"
        return on_main_process(finish, arguments, detected, source)
    if model is not None:
        return on_main_process(finish, arguments, detect(arguments, model), model)
    raise ConfigError("--model or --from-json is missing")


def finish(arguments: Arguments, detected: Detected, source: str) -> int:
    """Evaluate detections, write and print the results."""
    from sepc_zoo.evaluation.errors import errors_line
    from sepc_zoo.evaluation.metrics import metrics_table
    from sepc_zoo.training.logging import list_dropped

    evaluation = evaluate_figures(arguments, detected)
    output, file = Path(arguments.output), arguments.from_json
    written = write_results(output, arguments, detected, evaluation, source, source_file=file)
    for line in list_dropped(detected.annotations):
        say(line)
    make_console().print(metrics_table(evaluation.metrics))
    lines = {"errors": errors_line, "voc": voc_line, "intervals": intervals_line}
    for key, in_words in lines.items():
        if key in evaluation.metrics:
            say(in_words(evaluation.metrics[key]))
    images = counted(len(detected.annotations.records), "image")
    say(f"{images}; {', '.join(written)} are in {arguments.output}")
    return 0


def voc_line(voc: Mapping[str, Any]) -> str:
    """One line about the result of ``voc_ap``."""
    from sepc_zoo.evaluation.metrics import format_figure

    area, points = format_figure(voc["AP"]), format_figure(voc["AP_11_points"])
    return f"Pascal VOC's AP at an IoU of 0.5: {area}, with 11 points {points}"


def intervals_line(intervals: Mapping[str, Any]) -> str:
    """One line about the result of ``intervals``; undefined figures are left out."""
    known = {name: intervals[name] for name in AP_METRICS if intervals[name][0] >= 0}
    spans = [f"{name} {low:.3f} to {high:.3f}" for name, (low, high) in known.items()]
    return f"{100 * intervals['level']:.0f}% intervals: {', '.join(spans) or 'undefined'}"
