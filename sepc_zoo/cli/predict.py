"""Detect objects in images: writes each image with its boxes, and a JSON file of COCO results."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepc_zoo.cli.arguments import LoaderOptions, SuppressionOptions, TTAOptions
from sepc_zoo.errors import ConfigError
from sepc_zoo.options import Options, option

if TYPE_CHECKING:
    from sepc_zoo.config import DetectorConfig
    from sepc_zoo.inference.bulk import FileResult


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Options):
    """Prediction."""

    source: str = option(help="image, or folder of images", metavar="SOURCE", positional=True)
    model: str | None = option(
        None,
        "model folder, hf-hub:org/repo, or name of a model with published weights (default: the "
        "recommended model)",
        metavar="NAME_OR_DIR",
    )
    output: str = option("predictions", "folder to write", metavar="DIR")
    score_threshold: float = option(
        0.3,
        "minimum score of a detection; the model itself drops scores below its "
        "postprocess.score_threshold, usually 0.05",
        ge=0,
        le=1,
    )
    device: str | None = option(None, "cuda, mps or cpu (default: a GPU where there is one)")


@dataclass(frozen=True, kw_only=True)
class Arguments(PredictOptions, LoaderOptions, SuppressionOptions, TTAOptions):
    """Arguments of the command."""


def run(arguments: Arguments) -> int:
    """Predict all images of the source; an unreadable one is reported at the end."""
    from sepc_zoo.cli.runtime import choose_postprocess, model_with_weights, start_on_device
    from sepc_zoo.files import write_json
    from sepc_zoo.inference.bulk import DETECTIONS_FILE, predict_files
    from sepc_zoo.inference.tta import Views
    from sepc_zoo.registry import RECOMMENDED
    from sepc_zoo.training.resilience.signals import Interrupt, Interrupted

    files, output = find_images(arguments), Path(arguments.output)
    processes, device = start_on_device(arguments.device)
    if arguments.model is None and processes.is_main_process:
        print(recommendation())
    model = model_with_weights(arguments.model or RECOMMENDED).to(device)
    choose_postprocess(model, soft_nms=arguments.soft_nms, view_fusion=arguments.tta_fusion)
    interrupt = Interrupt()

    def stop_on_signal(done: int) -> None:
        if interrupt.signal:
            raise Interrupted(
                f"stopped after {done} images; {output / DETECTIONS_FILE} is not written",
                status=128 + interrupt.signal,
            )

    with interrupt:
        done = predict_files(
            model,
            files,
            output,
            arguments.score_threshold,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            views=Views(arguments.tta_flip, arguments.tta_scales),
            after_batch=stop_on_signal,
        )
    unreadable = [prediction.text for prediction in done if prediction.rows is None]
    if processes.is_main_process:
        content = coco_file(files, done, model.config)
        write_json(output / DETECTIONS_FILE, content)
        if len(files) == 1 and not unreadable:
            print(f"{arguments.source}: {done[0].text}")
        images, boxes = len(content["images"]), len(content["annotations"])
        print(f"{output}: {images} images and {DETECTIONS_FILE} with {boxes} boxes")
        for problem in unreadable:
            print(f"not done: {problem}", file=sys.stderr)
    return 1 if unreadable else 0


def recommendation() -> str:
    """Which model is taken by default, and whose AP speaks for it."""
    from sepc_zoo.published import PUBLISHED, PUBLISHERS
    from sepc_zoo.registry import RECOMMENDED

    row = PUBLISHED[RECOMMENDED]
    return (
        f"no --model given: taking {row.name}, AP {row.ap} on COCO val2017 as stated by "
        f"{PUBLISHERS[row.publisher].title}; `sepc-zoo list --pretrained` shows all"
    )


def find_images(arguments: Arguments) -> list[Path]:
    """The files of the source.

    Raises:
        ImageError: there are none.
        ConfigError: the output would be written among them.
    """
    from sepc_zoo.data.images import ImageError, list_images

    source = Path(arguments.source)
    if not source.exists():
        raise ImageError(f"{source}: no such file or folder")
    if source.resolve() == Path(arguments.output).resolve():
        raise ConfigError("--output is the folder of the images; choose another")
    files = list_images(source) if source.is_dir() else [source]
    if not files:
        raise ImageError(f"{source}: no images in this folder")
    return files


def coco_file(
    files: Sequence[Path], done: Sequence["FileResult"], config: "DetectorConfig"
) -> dict[str, Any]:
    """All results with the images and classes that their ids mean."""
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
