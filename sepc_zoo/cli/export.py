"""Write a detector as one file that runs without this library: ONNX, OpenVINO or torch.export.

The file has everything inside, from normalisation to non-maximum suppression. Its detections are
compared with the model's; where they differ, nothing is written.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sepc_zoo.options import Options, option
from sepc_zoo.terminal import say


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Export."""

    model: str = option(
        help="model folder, hf-hub:org/repo, or name of a model with published weights",
        metavar="NAME_OR_DIR",
    )
    output: str = option(help="file or folder to write", metavar="OUT")
    format: Literal["onnx", "openvino", "pt2"] = option("onnx", "format of the file")
    image_size: tuple[int, int] | None = option(
        None,
        "fixed height and width of the input in pixels (default: any)",
        ge=1,
        metavar=("H", "W"),
    )
    batch_size: int | None = option(None, "fixed number of images of a batch (default: any)", ge=1)
    raw: bool = option(
        False, "write what the head predicts for each anchor, without post-processing"
    )
    half: bool = option(False, "write weights in float16")


def run(arguments: Arguments) -> int:
    """Export and compare."""
    from sepc_zoo.cli.runtime import model_name
    from sepc_zoo.export.exporter import FIGURES_FILE, export
    from sepc_zoo.factory import create_model, read_metrics

    file = export(
        create_model(model_name(arguments.model), pretrained=True),
        arguments.output,
        arguments.format,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        raw=arguments.raw,
        half=arguments.half,
        metrics=read_metrics(Path(arguments.model).expanduser()),
    )
    say(f"{file}: compared with the model, see {file.with_name(FIGURES_FILE)}")
    if not arguments.raw:
        say(f"use it: sepc-zoo predict IMAGE --model {file}")
    return 0
