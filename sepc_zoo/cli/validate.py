"""Measure the COCO mAP of a model, or of saved detections, on a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sepc_zoo.cli.arguments import LoaderOptions, TTAOptions
from sepc_zoo.errors import ConfigError
from sepc_zoo.options import Options, option
from sepc_zoo.training.options import DeviceOptions, SourceOptions

if TYPE_CHECKING:
    from sepc_zoo.data import Annotations
    from sepc_zoo.evaluation.metrics import Evaluation

Rows: TypeAlias = list[dict[str, Any]]
Evaluated: TypeAlias = tuple["Annotations", "Evaluation", Rows]


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(Options):
    """Validation."""

    model: str | None = option(
        None,
        "model folder, hf-hub:org/repo, or name of a model with published weights",
        metavar="NAME_OR_DIR",
    )
    from_json: str | None = option(
        None,
        "saved detections instead of a model: COCO results, or what sepc-zoo predict wrote",
        metavar="FILE",
    )
    split: str = option("val", "name of the split", metavar="NAME")
    output: str = option("validation", "folder to write", metavar="DIR")
    no_report: bool = option(False, "do not write report.html")


@dataclass(frozen=True, kw_only=True)
class Arguments(ValidateOptions, SourceOptions, DeviceOptions, LoaderOptions, TTAOptions):
    """Arguments of the command."""


def run(arguments: Arguments) -> int:
    """Validate, write ``metrics.json``, ``detections.json`` and the report, print a table."""
    from rich.console import Console

    from sepc_zoo.evaluation.metrics import metrics_table
    from sepc_zoo.training.logging import list_dropped

    if arguments.from_json is not None:
        evaluated: Evaluated | None = evaluate_file(arguments)
    elif arguments.model is not None:
        evaluated = evaluate_model(arguments)
    else:
        raise ConfigError("--model or --from-json is missing")
    if evaluated is None:
        return 0
    annotations, evaluation, results = evaluated
    written = write_results(arguments, annotations, evaluation, results)
    for line in list_dropped(annotations):
        print(line)
    Console().print(metrics_table(evaluation.metrics))
    images = len(annotations.records)
    print(f"{images} images; {', '.join(written)} are in {arguments.output}")
    return 0


def evaluate_file(arguments: Arguments) -> Evaluated:
    """Evaluate saved detections; those in images of other splits are left out."""
    from sepc_zoo.evaluation.metrics import evaluate
    from sepc_zoo.evaluation.results import collect_detections, read_results

    annotations = read_split(arguments, None)
    file = str(arguments.from_json)
    results, elsewhere = read_results(Path(file), annotations)
    if elsewhere:
        print(f"left out {elsewhere} detections in images that are not in the split")
    found = collect_detections(results, annotations, file)
    return annotations, evaluate(found, annotations), results


def evaluate_model(arguments: Arguments) -> Evaluated | None:
    """Run the model and evaluate its detections; None in all processes but the main one."""
    from sepc_zoo.cli.runtime import model_with_weights
    from sepc_zoo.evaluation.validate import validate_model, validation_loader
    from sepc_zoo.inference.tta import Views
    from sepc_zoo.training.accelerator import make_accelerator

    accelerator = make_accelerator(arguments.amp, arguments.cpu)
    views = Views(arguments.tta_flip, arguments.tta_scales)
    model = model_with_weights(str(arguments.model))
    annotations = read_split(arguments, model.config.label_names)
    loader = validation_loader(annotations, model, arguments.batch_size, arguments.workers, views)
    model.to(accelerator.device)
    evaluation, results = validate_model(accelerator, model, loader, annotations)
    return (annotations, evaluation, results) if accelerator.is_main_process else None


def read_split(arguments: Arguments, label_names: tuple[str, ...] | None) -> "Annotations":
    """Read the annotations of the split, with the labels of a model where there is one."""
    from sepc_zoo.data import read_data

    return read_data(
        arguments.data, arguments.split, label_names, arguments.drop_bad_boxes, arguments.format
    )


def write_results(
    arguments: Arguments, annotations: "Annotations", evaluation: "Evaluation", results: Rows
) -> list[str]:
    """Write all files and return their names; the file of ``--from-json`` stays as it is."""
    from sepc_zoo.evaluation.report import write_report
    from sepc_zoo.evaluation.results import collect_detections
    from sepc_zoo.files import write_json

    output, file = Path(arguments.output), arguments.from_json
    saved = output / "detections.json"
    if file is None or saved.resolve() != Path(file).resolve():
        write_json(saved, results, indent=None)
    write_json(output / "metrics.json", evaluation.metrics)
    written = ["metrics.json", "detections.json"]
    if arguments.no_report:
        return written
    facts = {
        "model": arguments.model or f"Detections of {Path(str(file)).name}",
        "data": ", ".join(arguments.data),
        "split": arguments.split,
    }
    found = collect_detections(results, annotations, file or "detections")
    try:
        write_report(output / "report.html", annotations, found, evaluation, facts)
    except ImportError as error:
        print(f"no report.html: {error}")
        return written
    return [*written, "report.html"]
