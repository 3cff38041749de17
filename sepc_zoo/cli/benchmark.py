"""Measure speed and memory of models side by side: inference, training, and their parts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sepc_zoo.errors import ConfigError
from sepc_zoo.options import OptionError, Options, option

if TYPE_CHECKING:
    from sepc_zoo.evaluation.speed import Result


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Measurement."""

    model: tuple[str, ...] = option(
        help="names of models, measured with random weights, model folders, or exported files; all "
        "are compared with the first",
        metavar="NAME_OR_DIR",
    )
    batch_size: tuple[int, ...] = option((1,), "images per batch", ge=1)
    image_size: tuple[str, ...] = option(
        ("640x640",), "height and width of the images in pixels", metavar="HxW"
    )
    precision: tuple[Literal["float32", "bf16", "fp16"], ...] = option(
        ("float32",), "number format, by autocast"
    )
    train: bool = option(False, "also measure training steps")
    parts: bool = option(False, "also measure the parts of a model, such as backbone and neck")
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = option(
        None,
        "compile with torch.compile in this mode; reduce-overhead captures CUDA graphs",
        bare="default",
    )
    channels_last: bool = option(False, "use the channels-last memory format")
    device: Literal["cpu", "cuda"] | None = option(
        None, "device (default: a GPU where there is one)"
    )
    threads: int | None = option(None, "threads of the CPU (default: one for each core)", ge=1)
    rounds: int = option(10, "number of rounds; in each, every model has its turn", ge=1)
    memory: bool = option(False, "also measure peak memory")
    output: str | None = option(None, "table of the results to write", metavar="FILE.csv")

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.image_size:
            parse_size(text)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of ``HxW``; an OptionError for any other text."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise OptionError("image_size", f"is {text!r}; expected HEIGHTxWIDTH in pixels")
    return int(height), int(width)


def run(arguments: Arguments) -> int:
    """Measure each combination of batch size, image size and precision; print tables."""
    import itertools
    from pathlib import Path

    import torch

    from sepc_zoo.api.models import model_name
    from sepc_zoo.cli.speed_table import show, write_results
    from sepc_zoo.evaluation.speed import PARTS, WHOLE, Setting, compare
    from sepc_zoo.export.loaded import find_exported

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU here")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    parts = [*WHOLE[:2], *["step"] * arguments.train, *PARTS * arguments.parts]
    sizes = map(parse_size, arguments.image_size)
    models = [name if find_exported(name) else model_name(name) for name in arguments.model]
    results: list[Result] = []
    cases = itertools.product(arguments.batch_size, sizes, arguments.precision)
    for batch_size, (height, width), precision in cases:
        setting = Setting(
            batch_size=batch_size,
            height=height,
            width=width,
            precision=precision,
            compile=arguments.compile or "",
            channels_last=arguments.channels_last,
            device=device,
        )
        new = compare(models, setting, parts, arguments.rounds, arguments.memory)
        show(new, setting)
        results += new
        if arguments.output:  # after each setting, because the next may run out of memory
            write_results(Path(arguments.output), results, arguments.rounds)
    return 0
