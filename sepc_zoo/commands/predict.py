"""Boxes on photos: a picture for each, and a JSON file of COCO results."""

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sepc_zoo.commands.arguments import add_model_argument, best_device, model_with_weights
from sepc_zoo.config import ConfigError
from sepc_zoo.files import write_json
from sepc_zoo.ops.image import IMAGE_SUFFIXES, ImageError, list_images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a photo, or a folder of photos")
    add_model_argument(parser)
    parser.add_argument("--output", default="predictions", metavar="DIR", help="%(default)s")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="X", help="least score, %(default)s"
    )


def run(args: argparse.Namespace) -> int:
    source, output = Path(args.source), Path(args.output)
    if not source.exists():
        raise ImageError(f"{source}: no such file or folder")
    if source.resolve() == output.resolve():
        raise ConfigError("--output is the folder of the photos; choose another")
    photos = list_images(source) if source.is_dir() else [source]
    if not photos:
        raise ImageError(f"{source}: no photos in this folder")
    model = model_with_weights(args.model).to(best_device(args.device))
    images: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    unreadable = []
    for image_id, photo in enumerate(tqdm(photos, "predict", disable=len(photos) == 1), start=1):
        try:
            found = model.predict(photo, args.score_threshold)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        suffix = photo.suffix if photo.suffix.lower() in IMAGE_SUFFIXES else ".png"
        found.save(output / f"{photo.stem}_boxes{suffix}")
        images.append({"id": image_id, "file_name": photo.name})
        results += found.to_coco(image_id)
        if len(photos) == 1:
            print(f"{photo}: {found}")
    config = model.config
    names = zip(config.category_ids, config.label_names, strict=True)
    categories = [{"id": category_id, "name": name} for category_id, name in names]
    content = {"images": images, "categories": categories, "annotations": results}
    write_json(output / "detections.json", content)
    print(f"{output}: {len(images)} pictures and detections.json with {len(results)} boxes")
    for line in unreadable:
        print(f"not done: {line}", file=sys.stderr)
    return 1 if unreadable else 0
