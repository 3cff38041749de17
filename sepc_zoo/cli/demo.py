"""Serve a web page on this machine: upload an image, see what the model finds."""

from dataclasses import dataclass

from sepc_zoo.errors import ConfigError
from sepc_zoo.options import option
from sepc_zoo.training.options import DeviceOptions


@dataclass(frozen=True, kw_only=True)
class Arguments(DeviceOptions):
    """Demo."""

    model: str | None = option(
        None,
        "model folder, hf-hub:org/repo, exported file, or name of a model with published weights "
        "(default: the recommended model)",
        metavar="NAME_OR_DIR",
    )
    examples: str | None = option(
        None, "folder of images to choose from (default: drawn shapes)", metavar="IMAGES"
    )
    score_threshold: float = option(
        0.3, "minimum score of a detection when the page opens", ge=0, le=1
    )
    host: str = option(
        "127.0.0.1",
        "address to listen at; 0.0.0.0 lets other machines in, without a password",
        metavar="ADDRESS",
    )
    port: int | None = option(
        None, "port to listen at (default: the first free one from 7860 on)", ge=1, le=65535
    )


def run(arguments: Arguments) -> int:
    """Serve the page until it is interrupted."""
    try:
        from sepc_zoo.demo.page import make_page, serve
    except ImportError as error:
        raise ConfigError('demo needs gradio: pip install "sepc_zoo[demo]"') from error
    from sepc_zoo.api.models import model_with_weights
    from sepc_zoo.registry import RECOMMENDED
    from sepc_zoo.training.accelerator import start_processes

    device = start_processes(arguments.device).device
    model = model_with_weights(arguments.model or RECOMMENDED).to(device)
    page = make_page(model, arguments.examples, arguments.score_threshold)
    serve(page, arguments.host, arguments.port)
    return 0
