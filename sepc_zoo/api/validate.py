"""Validation of a model, or of saved detections, on a split."""

from collections.abc import Sequence
from copy import copy
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sepc_zoo.api.options import EvaluationOptions, SplitOptions
from sepc_zoo.errors import ConfigError
from sepc_zoo.options import check_names, takes_options
from sepc_zoo.terminal import say

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sepc_zoo.api.keywords import Source, ValidateKeywords
    from sepc_zoo.data import Annotations
    from sepc_zoo.evaluation.metrics import Evaluation
    from sepc_zoo.evaluation.results import SplitDetections
    from sepc_zoo.models.detector import Detector


@takes_options(EvaluationOptions)
def validate(
    model: "Source | Detector",
    data: "Source | Sequence[Source]",
    split: str = "val",
    *,
    output: "Source | None" = None,
    **options: "Unpack[ValidateKeywords]",
) -> dict[str, Any]:
    """Measure the COCO mAP of a model on a data set; the figures of ``sepc-zoo validate``.

    Args:
        model: a model folder, ``hf-hub:org/repo``, a name with published weights, an exported file,
            or a detector, which is set to eval mode and moved to the device that is used.
        data: data set, or several to join by class name.
        split: name of the split.
        output: folder to write ``metrics.json``, ``detections.json`` and ``report.html`` to;
            nothing is written without it.
        options: those of the command, with underscores.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``APs`` … from 0 to 1, -1 where nothing can be counted, and
        ``per_class`` with the same figures of each class by name; in all processes.

    Raises:
        ConfigError: an option is unknown or does not fit.
        DataError: the data set does not fit, with all that is wrong.
        HubError: weights are missing or unreachable.
        ImageError: too many images cannot be read.
        OSError: the output cannot be written; a UserError in other processes than the main one.
    """
    from sepc_zoo.ops.distributed import on_main_process
    from sepc_zoo.training.logging import list_dropped

    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    check_names(EvaluationOptions, given, "sepc_zoo.validate")
    asked = EvaluationOptions(**{"data": data, "split": split, **given})

    def finish(detected: Detected) -> dict[str, Any]:
        evaluation = evaluate_figures(asked, detected)
        for line in list_dropped(detected.annotations):
            say(line)
        if output is not None:
            name = str(model) if isinstance(model, str | PathLike) else model.config.architecture
            write_results(Path(output).expanduser(), asked, detected, evaluation, name)
        return evaluation.metrics

    return on_main_process(finish, detect(asked, model))


class Detected(NamedTuple):
    """The detections of a split, as COCO results and checked."""

    annotations: "Annotations"
    results: list[dict[str, Any]]
    detections: "SplitDetections"


def read_detections(arguments: SplitOptions, file: str) -> Detected:
    """Read saved detections; those in images of other splits are left out."""
    from sepc_zoo.evaluation.results import collect_detections, read_results

    annotations = read_split(arguments, None)
    results, elsewhere = read_results(Path(file), annotations)
    if elsewhere:
        say(f"left out {elsewhere} detections in images that are not in the split")
    return Detected(annotations, results, collect_detections(results, annotations, file))


def detect(arguments: SplitOptions, source: "Source | Detector") -> Detected | None:
    """Run a model on the split; None in all processes but the main one.

    Args:
        source: a detector, which is set to eval mode and moved to the device, or what
            ``model_with_weights`` loads.
    """
    from sepc_zoo.api.models import choose_postprocess, model_with_weights
    from sepc_zoo.data.sharing import read_once
    from sepc_zoo.evaluation.results import collect_detections
    from sepc_zoo.evaluation.validate import detect_split, validation_loader
    from sepc_zoo.training.accelerator import make_accelerator

    accelerator = make_accelerator(arguments.amp, arguments.device)
    if isinstance(source, str | PathLike):
        model = model_with_weights(source)
    else:  # a copy with the same weights: the config of a user's detector stays as it is
        model = copy(source.eval())
    choose_postprocess(model, arguments)
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
    if not len(listing.images):
        raise ConfigError(f"split {split!r} of {', '.join(data)} has no images")
    how = arguments.drop_bad_boxes, arguments.skip_bad_images
    return build_annotations(listing, label_names, *how)


def evaluate_figures(asked: EvaluationOptions, detected: Detected) -> "Evaluation":
    """Evaluate as COCO does, and add the figures that options ask for."""
    from dataclasses import replace

    from sepc_zoo.evaluation.bootstrap import LEVEL, Resampler, bootstrap, intervals
    from sepc_zoo.evaluation.metrics import count_frequencies, evaluate, frequency_metrics
    from sepc_zoo.evaluation.voc import voc_ap

    annotations, _, detections = detected
    evaluation = evaluate(detections, annotations)
    metrics = evaluation.metrics
    if asked.frequency_split is not None:
        train = replace(asked, split=asked.frequency_split)
        frequencies = count_frequencies(read_split(train, annotations.label_names))
        metrics |= frequency_metrics(evaluation.precision, frequencies)
    if asked.voc_ap:
        metrics["voc"] = voc_ap(detections, annotations)
    if asked.bootstrap and annotations.records:
        count, seed = asked.bootstrap, asked.seed
        samples = bootstrap([Resampler(detections, annotations)], count, seed)[:, 0]
        facts = {"resamples": count, "seed": seed, "level": LEVEL}
        metrics["intervals"] = facts | intervals(samples, annotations.label_names)
    return evaluation


def write_results(
    output: Path,
    asked: EvaluationOptions,
    detected: Detected,
    evaluation: "Evaluation",
    source: str,
    source_file: str | None = None,
) -> list[str]:
    """Write all files and return their names.

    Args:
        output: folder to write.
        source: what has found the objects, for the report.
        source_file: file that the detections come from, which stays as it is.
    """
    from sepc_zoo.evaluation.diagnosis import diagnose_split
    from sepc_zoo.evaluation.errors import ErrorCosts
    from sepc_zoo.evaluation.report.page import write_report
    from sepc_zoo.files import write_json

    annotations, results, detections = detected
    saved = output / "detections.json"
    if source_file is None or saved.resolve() != Path(source_file).resolve():
        write_json(saved, results, indent=None)
    written = ["metrics.json", "detections.json"]
    if asked.no_report:
        write_json(output / "metrics.json", evaluation.metrics)
        return written
    diagnosis = diagnose_split(detections, annotations)
    evaluation.metrics["errors"] = ErrorCosts(diagnosis, len(annotations.label_names)).costs()
    write_json(output / "metrics.json", evaluation.metrics)
    facts = {"model": source, "data": ", ".join(asked.data), "split": asked.split}
    try:
        write_report(output / "report.html", annotations, evaluation, diagnosis, facts)
    except ImportError as error:
        say(f"no report.html: {error}")
        return written
    return [*written, "report.html"]
