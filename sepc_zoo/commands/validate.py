"""COCO mAP of a model, or of saved detections, on a data set."""

import argparse
from pathlib import Path

from rich.console import Console

from sepc_zoo.commands.arguments import at_least, model_with_weights
from sepc_zoo.config import ConfigError
from sepc_zoo.data import read_data
from sepc_zoo.engine.accelerator import make_accelerator
from sepc_zoo.engine.evaluate import evaluate, metrics_table
from sepc_zoo.engine.log import told_dropped
from sepc_zoo.engine.results import found_in, read_results
from sepc_zoo.engine.validate import validate_model, validation_loader
from sepc_zoo.files import write_json
from sepc_zoo.report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="NAME_OR_DIR", help="model folder, hf-hub:org/repo or published name"
    )
    parser.add_argument(
        "--from-json",
        metavar="FILE",
        help="saved detections in its stead: COCO results, or what predict wrote",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="data set, COCO or VOC")
    parser.add_argument("--split", default="val", help="%(default)s")
    parser.add_argument("--output", default="validation", metavar="DIR", help="%(default)s")
    parser.add_argument(
        "--batch-size", type=at_least(1), default=4, metavar="N", help="%(default)s"
    )
    parser.add_argument("--workers", type=at_least(0), default=2, metavar="N", help="%(default)s")
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
        annotations = read_data(args.data, args.split, None, args.drop_bad_boxes)
        results, elsewhere = read_results(Path(args.from_json), annotations)
        if elsewhere:
            print(f"left out {elsewhere} detections in photos that the split does not have")
    else:
        accelerator = make_accelerator(args.amp, args.cpu)
        model = model_with_weights(args.model)
        names = model.config.label_names
        annotations = read_data(args.data, args.split, names, args.drop_bad_boxes)
        loader = validation_loader(annotations, model, args.batch_size, args.workers)
        prepared, loader = accelerator.prepare(model, loader)
        _, results = validate_model(accelerator, prepared, loader, annotations)
        if not accelerator.is_main_process:
            return 0
    found = found_in(results, annotations, args.from_json or "detections")
    evaluation = evaluate(found, annotations)
    saved = output / "detections.json"
    if args.from_json is None or saved.resolve() != Path(args.from_json).resolve():
        write_json(saved, results, indent=None)
    write_json(output / "metrics.json", evaluation.metrics)
    written = ["metrics.json", "detections.json"]
    if not args.no_report:
        source = args.model or f"Detections of {Path(args.from_json).name}"
        facts = {"model": source, "data": args.data, "split": args.split}
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
