"""COCO mAP of a model, or of saved detections, on a data set."""

import argparse
from pathlib import Path

from rich.console import Console

from sepc_zoo.cli.arguments import (
    add_loader_arguments,
    add_views_arguments,
    model_with_weights,
    views_of,
)
from sepc_zoo.config import ConfigError
from sepc_zoo.data import read_data
from sepc_zoo.data.formats.reader import FORMATS
from sepc_zoo.evaluation.metrics import evaluate, metrics_table
from sepc_zoo.evaluation.report import write_report
from sepc_zoo.evaluation.results import collect_detections, read_results
from sepc_zoo.evaluation.validate import validate_model, validation_loader
from sepc_zoo.files import write_json
from sepc_zoo.training.accelerator import make_accelerator
from sepc_zoo.training.logging import told_dropped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="NAME_OR_DIR", help="model folder, hf-hub:org/repo or published name"
    )
    parser.add_argument(
        "--from-json",
        metavar="FILE",
        help="saved detections in its stead: COCO results, or what predict wrote",
    )
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="DIR", help="data set, or several to be joined"
    )
    parser.add_argument("--format", choices=list(FORMATS), help="where the folder does not tell")
    parser.add_argument("--split", default="val", help="%(default)s")
    parser.add_argument("--output", default="validation", metavar="DIR", help="%(default)s")
    add_loader_arguments(parser)
    add_views_arguments(parser)
    parser.add_argument("--amp", choices=["bf16", "fp16"], help="mixed precision")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument(
        "--drop-bad-boxes", action="store_true", help="leave out boxes without area"
    )
    parser.add_argument("--no-report", action="store_true", help="do not write report.html")


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    if args.model is None and args.from_json is None:
        raise ConfigError("--model or --from-json is missing")
    if args.from_json is not None:
        annotations = read_data(args.data, args.split, None, args.drop_bad_boxes, args.format)
        results, elsewhere = read_results(Path(args.from_json), annotations)
        if elsewhere:
            print(f"left out {elsewhere} detections in photos that the split does not have")
        evaluation = evaluate(collect_detections(results, annotations, args.from_json), annotations)
    else:
        accelerator = make_accelerator(args.amp, args.cpu)
        views = views_of(args)
        model = model_with_weights(args.model)
        names = model.config.label_names
        annotations = read_data(args.data, args.split, names, args.drop_bad_boxes, args.format)
        loader = validation_loader(annotations, model, args.batch_size, args.workers, views)
        model.to(accelerator.device)
        evaluation, results = validate_model(accelerator, model, loader, annotations)
        if not accelerator.is_main_process:
            return 0
    saved = output / "detections.json"
    if args.from_json is None or saved.resolve() != Path(args.from_json).resolve():
        write_json(saved, results, indent=None)
    write_json(output / "metrics.json", evaluation.metrics)
    written = ["metrics.json", "detections.json"]
    if not args.no_report:
        source = args.model or f"Detections of {Path(args.from_json).name}"
        facts = {"model": source, "data": ", ".join(args.data), "split": args.split}
        found = collect_detections(results, annotations, args.from_json or "detections")
        try:
            write_report(output / "report.html", annotations, found, evaluation, facts)
            written.append("report.html")
        except ImportError as error:
            print(f"no report.html: {error}")
    for line in told_dropped(annotations):
        print(line)
    Console().print(metrics_table(evaluation.metrics))
    print(f"{len(annotations.records)} images; {', '.join(written)} are in {output}")
    return 0
