"""Measure the COCO mAP of a model, or of saved detections, on a data set."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sepc_zoo.cli.arguments import LoaderOptions, SuppressionOptions, TTAOptions
from sepc_zoo.errors import ConfigError
from sepc_zoo.options import Options, option
from sepc_zoo.terminal import make_console, say
from sepc_zoo.training.options import DeviceOptions, SourceOptions

if TYPE_CHECKING:
    from sepc_zoo.data import Annotations
    from sepc_zoo.evaluation.metrics import Evaluation
    from sepc_zoo.evaluation.results import SplitDetections


@dataclass(frozen=True, kw_only=True)
class SplitOptions(SourceOptions, DeviceOptions, LoaderOptions, SuppressionOptions, TTAOptions):
    """Data."""

    split: str = option("val", "name of the split", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(Options):
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
    no_report: bool = option(False, "do not write report.html, and do not analyse errors")
    voc_ap: bool = option(False, "also compute Pascal VOC's AP (area and 11 points, IoU 0.5)")
    bootstrap: int = option(
        0, "also compute 95% intervals of AP from N resamples of the images, such as 1000", ge=0
    )
    seed: int = option(0, "seed of the resamples", ge=0)
    frequency_split: str | None = option(
        None,
        "also compute LVIS's AP of rare (at most 10 images), common (at most 100) and frequent "
        "classes, counted in this split, such as train",
        metavar="NAME",
    )


@dataclass(frozen=True, kw_only=True)
class Arguments(ValidateOptions, SplitOptions):
    """Arguments of the command."""


class Detected(NamedTuple):
    """The detections of a split, as COCO results and checked."""

    annotations: "Annotations"
    results: list[dict[str, Any]]
    detections: "SplitDetections"


def run(arguments: Arguments) -> int:
    """Validate, write ``metrics.json``, ``detections.json`` and the report, print a table."""

    from sepc_zoo.evaluation.errors import errors_line
    from sepc_zoo.evaluation.metrics import evaluate, metrics_table
    from sepc_zoo.training.logging import list_dropped

    if arguments.from_json is not None:
        detected: Detected | None = read_detections(arguments, arguments.from_json)
    elif arguments.model is not None:
        detected = detect(arguments, arguments.model)
    else:
        raise ConfigError("--model or --from-json is missing")
    if detected is None:
        return 0
    annotations = detected.annotations
    evaluation = evaluate(detected.detections, annotations)
    add_figures(arguments, detected, evaluation)
    written = write_results(arguments, detected, evaluation)
    for line in list_dropped(annotations):
        say(line)
    make_console().print(metrics_table(evaluation.metrics))
    if "errors" in evaluation.metrics:
        say(errors_line(evaluation.metrics["errors"]))
    images = len(annotations.records)
    say(f"{images} images; {', '.join(written)} are in {arguments.output}")
    return 0


def read_detections(arguments: SplitOptions, file: str) -> Detected:
    """Read saved detections; those in images of other splits are left out."""
    from sepc_zoo.evaluation.results import collect_detections, read_results

    annotations = read_split(arguments, None)
    results, elsewhere = read_results(Path(file), annotations)
    if elsewhere:
        say(f"left out {elsewhere} detections in images that are not in the split")
    return Detected(annotations, results, collect_detections(results, annotations, file))


def detect(arguments: SplitOptions, model_source: str) -> Detected | None:
    """Run a model; None in all processes but the main one."""
    from sepc_zoo.cli.runtime import choose_postprocess, model_with_weights
    from sepc_zoo.data.sharing import read_once
    from sepc_zoo.evaluation.results import collect_detections
    from sepc_zoo.evaluation.validate import detect_split, validation_loader
    from sepc_zoo.training.accelerator import make_accelerator

    accelerator = make_accelerator(arguments.amp, arguments.cpu)
    model = model_with_weights(model_source)
    choose_postprocess(model, soft_nms=arguments.soft_nms, view_fusion=arguments.tta_fusion)
    annotations = read_once(partial(read_split, arguments, model.config.label_names))
    loader = validation_loader(
        annotations, model, arguments.batch_size, arguments.workers, arguments.views()
    )
    model.to(accelerator.device)
    results = detect_split(accelerator, model, loader, annotations)
    if not accelerator.is_main_process:
        return None
    return Detected(annotations, results, collect_detections(results, annotations, "detections"))


def read_split(arguments: SplitOptions, label_names: tuple[str, ...] | None) -> "Annotations":
    """Read the annotations of the split, with the labels of a model where there is one."""
    from sepc_zoo.data.annotations import build_annotations
    from sepc_zoo.data.formats.reader import list_data
    from sepc_zoo.data.splitting import VAL_SPLIT, divide, has_split

    data, split, format = arguments.data, arguments.split, arguments.format
    is_asked = arguments.split_by is not None or arguments.val_fraction is not None
    if is_asked or (split == VAL_SPLIT and not has_split(data, split, format)):
        division = divide(
            data,
            val=VAL_SPLIT if split == "train" else split,
            format=format,
            fraction=arguments.val_fraction,
            seed=arguments.split_seed,
            file=arguments.split_by,
        )
        say(division.note)
        listing = division.train if split == "train" else division.val
    else:
        listing = list_data(data, split, format)
    how = arguments.drop_bad_boxes, arguments.skip_bad_images
    return build_annotations(listing, label_names, *how)


def add_figures(arguments: Arguments, detected: Detected, evaluation: "Evaluation") -> None:
    """Add the figures to ``evaluation.metrics`` that options ask for."""
    annotations, _, detections = detected
    metrics = evaluation.metrics
    if arguments.frequency_split is not None:
        from dataclasses import replace

        from sepc_zoo.evaluation.metrics import count_frequencies, frequency_metrics

        train = replace(arguments, split=arguments.frequency_split)
        frequencies = count_frequencies(read_split(train, annotations.label_names))
        metrics |= frequency_metrics(evaluation.precision, frequencies)
    if arguments.voc_ap:
        from sepc_zoo.evaluation.voc import voc_ap

        metrics["voc"] = voc_ap(detections, annotations)
    if arguments.bootstrap and annotations.records:
        from sepc_zoo.evaluation.bootstrap import LEVEL, Resampler, bootstrap, intervals

        count, seed = arguments.bootstrap, arguments.seed
        samples = bootstrap([Resampler(detections, annotations)], count, seed)[:, 0]
        facts = {"resamples": count, "seed": seed, "level": LEVEL}
        metrics["intervals"] = facts | intervals(samples, annotations.label_names)


def write_results(arguments: Arguments, detected: Detected, evaluation: "Evaluation") -> list[str]:
    """Write all files and return their names; the file of ``--from-json`` stays as it is."""
    from sepc_zoo.evaluation.diagnosis import diagnose_split
    from sepc_zoo.evaluation.errors import ErrorCosts
    from sepc_zoo.evaluation.report import write_report
    from sepc_zoo.files import write_json

    annotations, results, detections = detected
    output, file = Path(arguments.output), arguments.from_json
    saved = output / "detections.json"
    if file is None or saved.resolve() != Path(file).resolve():
        write_json(saved, results, indent=None)
    written = ["metrics.json", "detections.json"]
    if arguments.no_report:
        write_json(output / "metrics.json", evaluation.metrics)
        return written
    diagnosis = diagnose_split(detections, annotations)
    evaluation.metrics["errors"] = ErrorCosts(diagnosis, len(annotations.label_names)).costs()
    write_json(output / "metrics.json", evaluation.metrics)
    facts = {
        "model": arguments.model or f"Detections of {Path(str(file)).name}",
        "data": ", ".join(arguments.data),
        "split": arguments.split,
    }
    try:
        write_report(output / "report.html", annotations, evaluation, diagnosis, facts)
    except ImportError as error:
        say(f"no report.html: {error}")
        return written
    return [*written, "report.html"]
