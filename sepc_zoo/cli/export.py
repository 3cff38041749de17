"""Write a detector as one file that runs without this library: ONNX, OpenVINO or torch.export.

The file has everything inside, from normalisation to non-maximum suppression. Its detections are
compared with the model's; if they differ, nothing is written.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepc_zoo.export import Format
from sepc_zoo.options import OptionError, Options, option
from sepc_zoo.terminal import quoted, say

if TYPE_CHECKING:
    from sepc_zoo.export.int8 import Int8

CALIBRATION_IMAGES = 300


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Export."""

    model: str = option(
        help="model folder, hf-hub:org/repo, or name of a model with published weights",
        metavar="NAME_OR_DIR",
    )
    output: str = option(help="file or folder to write", metavar="OUT")
    format: Format = option("onnx", "format of the file")
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
    int8: bool = option(False, "write convolutions in int8, which needs --calibrate")
    calibrate: tuple[str, ...] = option(
        (),
        "data set whose training images calibrate int8, and whose validation images measure AP "
        "before and after",
        metavar="DATA",
    )
    max_drop: float = option(0.01, "largest loss of AP by int8, as a fraction", ge=0, le=1)
    with_runtime: bool = option(
        False,
        "also write detect.py beside an ONNX file: it runs the file on images with numpy, "
        "onnxruntime and pillow alone",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.int8 != bool(self.calibrate):
            raise OptionError("calibrate", "and --int8 go together")
        if self.with_runtime and (self.format != "onnx" or self.raw):
            raise OptionError("with_runtime", "needs --format onnx, without --raw")


def run(arguments: Arguments) -> int:
    """Export and compare."""
    from sepc_zoo.api.models import model_name
    from sepc_zoo.checkpoints.layout import metrics_of
    from sepc_zoo.export.exporter import FIGURES_FILE, export, read_figures
    from sepc_zoo.factory import create_model

    model = create_model(model_name(arguments.model), pretrained=True)
    say(f"exporting {arguments.model}, and comparing the file with it; this takes a while")
    file = export(
        model,
        arguments.output,
        arguments.format,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        raw=arguments.raw,
        half=arguments.half,
        int8=calibration(arguments, model.config.label_names) if arguments.int8 else None,
        metrics=metrics_of(Path(arguments.model)),
    )
    say(f"{file}: compared with the model, see {file.with_name(FIGURES_FILE)}")
    if arguments.with_runtime:
        from sepc_zoo.export.runtime import write_runtime

        script = write_runtime(file.parent)
        say(f"without this library: python {quoted(script)} {quoted(file)} IMAGES")
    if not arguments.raw:
        say(f"use it: sepc-zoo predict IMAGE --model {quoted(file)}")
    if not read_figures(file.parent)[file.name]["detections"]:
        say("the model finds nothing in the images of the comparison; compare by sepc-zoo validate")
    return 0


def calibration(arguments: Arguments, label_names: tuple[str, ...]) -> "Int8":
    """Int8 with images of the training split, and AP measured on the validation split."""
    from sepc_zoo.data import read_data
    from sepc_zoo.evaluation.validate import validate_model, validation_loader
    from sepc_zoo.export.int8 import Int8
    from sepc_zoo.training.accelerator import make_accelerator

    val = read_data(arguments.calibrate, "val", label_names)
    train = read_data(arguments.calibrate, "train", label_names).records
    step = max(1, len(train) // CALIBRATION_IMAGES)
    accelerator = make_accelerator(None, device="cpu")

    def measure(exported: Any) -> float:
        loader = validation_loader(val, exported, batch_size=1, workers=0)
        return validate_model(accelerator, exported, loader, val)[0].metrics["AP"]

    files = [train.path(i) for i in range(0, len(train), step)]
    return Int8(files[:CALIBRATION_IMAGES], measure, arguments.max_drop)
