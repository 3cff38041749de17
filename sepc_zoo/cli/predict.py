"""Detect objects in images, videos and streams.

Writes each image with its boxes, and a JSON file of COCO results of all images. A video, camera or
stream gives a video with boxes, and a file of JSON lines with the detections of each frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepc_zoo.api.options import DetectOptions, LoaderOptions
from sepc_zoo.options import Options, option
from sepc_zoo.terminal import counted, say
from sepc_zoo.training.options import DeviceOptions

if TYPE_CHECKING:
    from sepc_zoo.config import DetectorConfig
    from sepc_zoo.inference.bulk import FileResult
    from sepc_zoo.inference.sources import FileList


@dataclass(frozen=True, kw_only=True)
class VideoOptions(Options):
    """Videos, cameras and streams."""

    every: int = option(1, "detect in every n-th frame, and leave out the others", ge=1)
    track: bool = option(
        False, "follow objects from frame to frame: each keeps its number (ByteTrack)"
    )


@dataclass(frozen=True, kw_only=True)
class Arguments(VideoOptions, DeviceOptions, LoaderOptions, DetectOptions):
    """Prediction."""

    source: tuple[str, ...] = option(
        help="images, videos, folders of these, patterns such as 'images/**/*.png', addresses such "
        "as rtsp://host/path, or cameras such as 0 or /dev/video0",
        metavar="SOURCE",
        positional=True,
    )
    recursive: bool = option(False, "also take what is in folders inside of folders")
    model: str | None = option(
        None,
        "model folder, hf-hub:org/repo, exported file, or name of a model with published weights "
        "(default: the recommended model)",
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


def run(arguments: Arguments) -> int:
    """Predict all sources, images first; failures are listed at the end."""
    from sepc_zoo.api.models import choose_postprocess, model_with_weights
    from sepc_zoo.data.resilient_loader import kill_workers
    from sepc_zoo.inference.bulk import DETECTIONS_FILE, predict_files, predict_videos
    from sepc_zoo.inference.sources import find_files
    from sepc_zoo.inference.tracking import Tracker
    from sepc_zoo.inference.video import import_av
    from sepc_zoo.registry import RECOMMENDED
    from sepc_zoo.training.accelerator import start_processes
    from sepc_zoo.training.resilience.signals import Interrupt, Interrupted, WaitEnded

    output = Path(arguments.output)
    images, videos = find_files(arguments.source, arguments.recursive, output).split()
    if videos.files:  # report missing packages before the work starts
        import_av()
        if arguments.track:
            Tracker(arguments.score_threshold)
    processes = start_processes(arguments.device)
    if arguments.model is None and processes.is_main_process:
        say(recommendation())
    model = model_with_weights(arguments.model or RECOMMENDED).to(processes.device)
    choose_postprocess(model, arguments)
    common: dict[str, Any] = {"batch_size": arguments.batch_size, "views": arguments.views()}
    interrupt = Interrupt()

    def stop_on_signal(*_: object, kept: str = "pictures", lost: str = DETECTIONS_FILE) -> None:
        if interrupt.signal:
            raise Interrupted(
                f"stopped; {kept} made until then are in {output}"
                + f", {lost} is not written" * bool(lost),
                status=128 + interrupt.signal,
            )

    problems: list[str] = []
    with interrupt:
        if images.files:
            try:
                done = predict_files(
                    model,
                    images,
                    output,
                    arguments.score_threshold,
                    workers=arguments.workers,
                    after_batch=stop_on_signal,
                    waiting=interrupt.ends_wait,
                    **common,
                )
            except WaitEnded:
                kill_workers()
                stop_on_signal()
            problems += [result.problem for result in done if result.problem]
            if processes.is_main_process:
                problems += report_images(images, done, model.config, arguments)
        if videos.files:
            results = predict_videos(
                model,
                videos,
                output,
                arguments.score_threshold,
                every=arguments.every,
                track=arguments.track,
                stopped=lambda: interrupt.signal is not None,
                **common,
            )
            for result in results:
                problems += result.problems
                if result.text and processes.is_main_process:
                    say(result.text)
                    if result.best_score < arguments.score_threshold:
                        say(no_box_line(result.best_score, model.config, arguments))
    if processes.is_main_process:
        for problem in problems:
            say(f"not done: {problem}", error=True)
    if videos.files:
        stop_on_signal(kept="videos", lost="")
    return 1 if problems else 0


def report_images(
    images: "FileList",
    done: Sequence["FileResult"],
    config: "DetectorConfig",
    arguments: Arguments,
) -> list[str]:
    """Write the detections of all images, print how many there are, and return problems."""
    from sepc_zoo.files import write_json
    from sepc_zoo.inference.bulk import DETECTIONS_FILE
    from sepc_zoo.inference.preprocess import without_password

    output, problems = Path(arguments.output), []
    content = coco_file(images, done, config)
    try:
        write_json(output / DETECTIONS_FILE, content)
    except OSError as error:
        problems.append(f"{output / DETECTIONS_FILE}: cannot be written: {error.strerror}")
    if len(done) == 1 and done[0].text:
        say(f"{without_password(str(images.files[0]))}: {done[0].text}")
    count, num_boxes = len(content["images"]), len(content["annotations"])
    boxes = f"{DETECTIONS_FILE} with {counted(num_boxes, 'box')}"
    say(f"{output}: {counted(count, 'image')} and {boxes}")
    if count and not num_boxes:
        say(no_box_line(max(result.best_score for result in done), config, arguments))
    return problems


def no_box_line(best: float, config: "DetectorConfig", arguments: Arguments) -> str:
    """A line on why there is no box, given the highest score."""
    own, asked = config.postprocess.score_threshold, arguments.score_threshold
    if best:
        return f"no score reaches {asked:g}; the highest is {best:.3f}: lower --score-threshold"
    limit = f"the model's own limit of {own:g} (postprocess.score_threshold)"
    return f"no score reaches {asked:g}; none reaches {limit}"


def recommendation() -> str:
    """Name the model that is taken by default, and whose AP speaks for it."""
    from sepc_zoo.published import PUBLISHED, PUBLISHERS
    from sepc_zoo.registry import RECOMMENDED

    row = PUBLISHED[RECOMMENDED]
    return (
        f"no --model given: taking {row.name}, AP {row.ap} on COCO val2017 as stated by "
        f"{PUBLISHERS[row.publisher].title}; `sepc-zoo list --pretrained` shows all"
    )


def coco_file(
    images: "FileList", done: Sequence["FileResult"], config: "DetectorConfig"
) -> dict[str, Any]:
    """COCO results of all images, with tables of the images and classes that ids refer to."""
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
