"""A web page that shows what a model finds in an image."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from PIL import Image
from torch import Tensor

from sepc_zoo.data.images import ImageError, list_images, read_image, read_size
from sepc_zoo.data.synthetic import write_shapes
from sepc_zoo.demo.handler import as_rows
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.predictor import ImageDetector, predict
from sepc_zoo.inference.tiles import Tiles
from sepc_zoo.inference.tta import Views

MAX_UPLOAD = "64mb"
MAX_PIXELS = 2**27  # pixels of an image; a small file can hold very many
MAX_AGE = 3600  # seconds after which files of visitors are deleted
MAX_SESSIONS = 16  # visitors whose last image is kept in memory
MAX_EXAMPLES = 12
TILES = {"off": 0, "320": 320, "640": 640, "1280": 1280}  # pixels
HEADERS = ("class", "score", "x1", "y1", "x2", "y2")


def make_page(
    model: ImageDetector, examples: str | Path | None = None, score_threshold: float = 0.3
) -> gr.Blocks:
    """Build the page of a model: image, threshold and tiles as inputs; boxes, a table and JSON.

    Args:
        examples: folder of images to choose from; by default drawn shapes.
        score_threshold: initial lowest score of a detection.

    Raises:
        ImageError: the folder of examples is missing.
    """
    title = f"{model.config.architecture}, {model.config.num_classes} classes"
    choices = example_images(examples)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(MAX_AGE, MAX_AGE)) as page:
        gr.Markdown(f"## {title}")
        found = gr.State("")
        with gr.Row():
            with gr.Column():
                image = gr.Image(label="Image", type="filepath")
                # The uploaded file unchanged: our own reader says what is wrong with it.
                image.preprocess = path_of  # type: ignore
                score = gr.Slider(0, 1, score_threshold, step=0.01, label="Minimum score")
                tile = gr.Radio([*TILES], value="off", label="Tiles of a large image, pixels")
                gr.Examples([str(path) for path in choices], image)
            with gr.Column():
                text = gr.Textbox(label="Result", interactive=False)
                picture = gr.Image(
                    label="Detections", format="jpeg", buttons=["download", "fullscreen"]
                )
                file = gr.DownloadButton("Download JSON", interactive=True)
                table = gr.Dataframe(headers=[*HEADERS], label="Detections", interactive=False)
        shown = [text, picture, table, file]
        changed = gr.on(
            [image.change, tile.change],
            partial(detect, model),
            [image, tile],
            found,
            api_name="detect",
        )
        changed.then(show, [found, score], shown)
        score.release(show, [found, score], shown)
    return page


def path_of(upload: ImageData | None) -> str | None:
    """Get the path of a file that gradio has received."""
    return None if upload is None else upload.path


def serve(page: gr.Blocks, host: str | None = None, port: int | None = None) -> None:
    """Serve a page until the process is interrupted.

    Args:
        host: address to listen on; by default gradio's variables decide, or only this machine.
        port: by default the first free one from 7860 on.

    Raises:
        OSError: the port is taken.
    """
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        show_error=True,
        max_file_size=MAX_UPLOAD,
        state_session_capacity=MAX_SESSIONS,
        ssr_mode=False,
        run_history=False,
    )


def detect(model: ImageDetector, path: str | None, tile: str) -> Detections | str:
    """Detect objects in a visitor's file; an error gives its message, no file an empty text."""
    if path is None:
        return ""
    try:
        pixels = read_upload(path, len(model.config.weights.mean))
    except ImageError as error:
        return str(error)
    views = Views(tiles=Tiles(TILES[tile]) if TILES[tile] else None)
    return predict(model, pixels, 0.0, views)


def show(
    found: Detections | str, score_threshold: float
) -> tuple[str, Image.Image | None, list[list[Any]], str | None]:
    """Show the detections with at least a score: a line, a picture, a table and a JSON file."""
    if isinstance(found, str):
        return found, None, [], None
    kept = found[found.scores >= score_threshold]
    rows = [[d.name, round(d.score, 3), *(round(side, 1) for side in d.box)] for d in kept]
    content = json.dumps(as_rows(kept), indent=1).encode()
    file = save_bytes_to_cache(content, "detections.json", get_upload_folder())
    return kept.summary(), kept.draw(), rows, file


def read_upload(path: str, channels: int) -> Tensor:
    """Read the pixels of a visitor's file.

    Raises:
        ImageError: it is no image, or has more than ``MAX_PIXELS``; names no folder of the server.
    """
    try:
        height, width = read_size(path)
        if height * width > MAX_PIXELS:
            raise ImageError(f"{path}: {height} x {width} pixels are too many for this page")
        return read_image(path, channels=channels)
    except ImageError as error:
        raise ImageError(str(error).replace(path, Path(path).name)) from error


def example_images(folder: str | Path | None) -> Sequence[Path]:
    """List the first images of a folder; without a folder, draw shapes, the last image large."""
    if folder is not None:
        return list_images(folder)[:MAX_EXAMPLES]
    root = Path(tempfile.mkdtemp(prefix="sepc_zoo_demo_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    small = write_shapes(root / "small", train=0, val=3, size=(480, 640), sides=(40, 160))
    large = write_shapes(root / "large", train=0, val=1, size=(960, 1280), sides=(8, 60))
    return [*list_images(small / "val"), *list_images(large / "val")]
