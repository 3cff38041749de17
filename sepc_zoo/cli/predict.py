"""Detect objects in images: writes each image with its boxes, and a JSON file of COCO results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepc_zoo.cli.arguments import LoaderOptions, SuppressionOptions, TTAOptions
from sepc_zoo.options import Options, option
from sepc_zoo.terminal import say

if TYPE_CHECKING:
    from sepc_zoo.config import DetectorConfig
    from sepc_zoo.inference.bulk import FileResult, ImageList


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Options):
    """Prediction."""

    source: tuple[str, ...] = option(
        help="images, folders of images, or patterns such as 'images/**/*.png'",
        metavar="SOURCE",
        positional=True,
    )
    recursive: bool = option(False, "also take the images in folders inside of folders")
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
    """Predict all images of the sources; what cannot be done is reported at the end."""
    from sepc_zoo.cli.runtime import choose_postprocess, model_with_weights, start_on_device
    from sepc_zoo.data.resilient_loader import kill_workers
    from sepc_zoo.files import write_json
    from sepc_zoo.inference.bulk import DETECTIONS_FILE, find_images, predict_files
    from sepc_zoo.inference.tta import Views
    from sepc_zoo.registry import RECOMMENDED
    from sepc_zoo.training.resilience.signals import Interrupt, Interrupted, WaitEnded

    output = Path(arguments.output)
    images = find_images(arguments.source, arguments.recursive, output)
    processes, device = start_on_device(arguments.device)
    if arguments.model is None and processes.is_main_process:
        say(recommendation())
    model = model_with_weights(arguments.model or RECOMMENDED).to(device)
    choose_postprocess(model, soft_nms=arguments.soft_nms, view_fusion=arguments.tta_fusion)
    interrupt = Interrupt()

    def stop_on_signal(*_: int) -> None:
        if interrupt.signal:
            raise Interrupted(
                f"stopped; pictures made until then are in {output}, {DETECTIONS_FILE} is not "
                "written",
                status=128 + interrupt.signal,
            )

    done: list[FileResult] = []
    try:
        with interrupt:
            done = predict_files(
                model,
                images,
                output,
                arguments.score_threshold,
                batch_size=arguments.batch_size,
                workers=arguments.workers,
                views=Views(arguments.tta_flip, arguments.tta_scales),
                after_batch=stop_on_signal,
                waiting=interrupt.ends_wait,
            )
    except WaitEnded:
        kill_workers()
        stop_on_signal()
    problems = [result.problem for result in done if result.problem]
    if processes.is_main_process:
        content = coco_file(images, done, model.config)
        try:
            write_json(output / DETECTIONS_FILE, content)
        except OSError as error:
            problems.append(f"{output / DETECTIONS_FILE}: cannot be written: {error.strerror}")
        if len(done) == 1 and not problems:
            say(f"{images.files[0]}: {done[0].text}")
        count, boxes = len(content["images"]), len(content["annotations"])
        say(f"{output}: {count} images and {DETECTIONS_FILE} with {boxes} boxes")
        for problem in problems:
            say(f"not done: {problem}", error=True)
    return 1 if problems else 0


def recommendation() -> str:
    """Which model is taken by default, and whose AP speaks for it."""
    from sepc_zoo.published import PUBLISHED, PUBLISHERS
    from sepc_zoo.registry import RECOMMENDED

    row = PUBLISHED[RECOMMENDED]
    return (
        f"no --model given: taking {row.name}, AP {row.ap} on COCO val2017 as stated by "
        f"{PUBLISHERS[row.publisher].title}; `sepc-zoo list --pretrained` shows all"
    )


def coco_file(
    images: "ImageList", done: Sequence["FileResult"], config: "DetectorConfig"
) -> dict[str, Any]:
    """All results with the images and classes that their ids mean."""
    names = zip(config.category_ids, config.label_names, strict=True)
    return {
        "images": [
            {"id": p.position + 1, "file_name": images.name(p.position)}
            for p in done
            if p.rows is not None
        ],
        "categories": [{"id": category_id, "name": name} for category_id, name in names],
        "annotations": [row for p in done for row in p.rows or []],
    }
