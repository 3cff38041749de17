"""A Space of the hub that shows a model, as a folder of its files."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import SpaceCardData

import sepc_zoo
from sepc_zoo.demo import handler
from sepc_zoo.files import write_text

APP_FILE, REQUIREMENTS_FILE, HANDLER_FILE = "app.py", "requirements.txt", "handler.py"
APP = '''\
"""The page of a Space: upload an image, see what the model finds."""

from pathlib import Path

import torch

from sepc_zoo.demo.page import make_page, serve
from sepc_zoo.factory import load_model

HERE = Path(__file__).parent
MODEL, EXAMPLES = HERE / "model", HERE / "examples"  # folders that need not be there

model = load_model(MODEL if MODEL.is_dir() else "hf-hub:{repo_id}")
model.to("cuda" if torch.cuda.is_available() else "cpu")
serve(make_page(model, EXAMPLES if EXAMPLES.is_dir() else None))
'''
CARD = """\
---
{front}
---

# {title}

Detects objects with the model [{repo_id}](https://huggingface.co/{repo_id}), built with sepc_zoo. \
Images in a folder `examples` appear below the upload; a model folder `model` beside `app.py` is \
taken in place of the one on the hub.
"""


def write_space(folder: Path, space_id: str, repo_id: str, license: str | None) -> None:
    """Write the files of a Space: its page, requirements and card.

    Args:
        space_id: the Space on the hub, ``org/name``.
        repo_id: the model on the hub.
        license: licence of the model, by its id on the hub.
    """
    title = space_id.partition("/")[2]
    front = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=installed_gradio(),
        app_file=APP_FILE,
        license=license,
        models=[repo_id],
        tags=["object-detection"],
    )
    write_text(folder / APP_FILE, APP.format(repo_id=repo_id))
    write_text(folder / REQUIREMENTS_FILE, requirement("sepc_zoo[demo]"))
    card = CARD.format(front=front.to_yaml(), title=title, repo_id=repo_id)
    write_text(folder / "README.md", card)


def write_handler(folder: Path) -> None:
    """Write the handler of Inference Endpoints and its requirements into a model folder."""
    write_text(folder / HANDLER_FILE, Path(handler.__file__).read_text(encoding="utf-8"))
    write_text(folder / REQUIREMENTS_FILE, requirement("sepc_zoo"))


def requirement(package: str) -> str:
    """Build a line of a requirements file: at least this version."""
    return f"{package}>={sepc_zoo.__version__}\n"


def installed_gradio() -> str | None:
    """Get the version of gradio for a Space; None, if it is not installed: the hub chooses."""
    try:
        return version("gradio")
    except PackageNotFoundError:
        return None
