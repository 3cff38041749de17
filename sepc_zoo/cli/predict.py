"""Boxes on photos: a picture for each, and a JSON file of COCO results."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sepc_zoo.cli.arguments import (
    add_loader_arguments,
    add_model_argument,
    add_views_arguments,
    model_with_weights,
    start_on_device,
    views_of,
)
from sepc_zoo.config import ConfigError, DetectorConfig
from sepc_zoo.data.images import ImageError, list_images
from sepc_zoo.files import write_json
from sepc_zoo.inference.bulk import DETECTIONS_FILE, FileResult, predict_files
from sepc_zoo.training.resilience.signals import Interrupt, Interrupted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a photo, or a folder of photos")
    add_model_argument(parser)
    parser.add_argument("--output", default="predictions", metavar="DIR", help="%(default)s")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="X", help="least score, %(default)s"
    )
    add_loader_arguments(parser)
    add_views_arguments(parser)


def run(args: argparse.Namespace) -> int:
    source, output = Path(args.source), Path(args.output)
    if not source.exists():
        raise ImageError(f"{source}: no such file or folder")
    if source.resolve() == output.resolve():
        raise ConfigError("--output is the folder of the photos; choose another")
    files = list_images(source) if source.is_dir() else [source]
    if not files:
        raise ImageError(f"{source}: no photos in this folder")
    views = views_of(args)
    processes, device = start_on_device(args.device)
    model = model_with_weights(args.model).to(device)
    interrupt = Interrupt()

    def stop_on_signal(done: int) -> None:
        if interrupt.signal:
            raise Interrupted(
                f"stopped after {done} images; {output / DETECTIONS_FILE} is not written",
                status=128 + interrupt.signal,
            )

    try:
        with interrupt:
            done = predict_files(
                model,
                files,
                output,
                args.score_threshold,
                batch_size=args.batch_size,
                workers=args.workers,
                views=views,
                after_batch=stop_on_signal,
            )
    except Interrupted as interrupted:
        if processes.is_main_process:
            print(interrupted, file=sys.stderr)
        return interrupted.status
    unreadable = [prediction.text for prediction in done if prediction.rows is None]
    if processes.is_main_process:
        content = coco_file(files, done, model.config)
        write_json(output / DETECTIONS_FILE, content)
        if len(files) == 1 and not unreadable:
            print(f"{source}: {done[0].text}")
        pictures, boxes = len(content["images"]), len(content["annotations"])
        print(f"{output}: {pictures} pictures and {DETECTIONS_FILE} with {boxes} boxes")
        for problem in unreadable:
            print(f"not done: {problem}", file=sys.stderr)
    return 1 if unreadable else 0


def coco_file(
    files: Sequence[Path], done: Sequence[FileResult], config: DetectorConfig
) -> dict[str, Any]:
    """All results beside the photos and the classes that they are of."""
    names = zip(config.category_ids, config.label_names, strict=True)
    return {
        "images": [
            {"id": p.position + 1, "file_name": files[p.position].name}
            for p in done
            if p.rows is not None
        ],
        "categories": [{"id": category_id, "name": name} for category_id, name in names],
        "annotations": [row for p in done for row in p.rows or []],
    }
