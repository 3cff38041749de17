"""The 13 checkpoints that the SEPC authors published: fetched, checked, converted and kept."""

import shutil
import tempfile
from pathlib import Path
from typing import NoReturn

import torch

from sepc_zoo.checkpoints.convert.sepc_authors import (
    CheckpointError,
    from_authors,
    read_authors_checkpoint,
)
from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.checkpoints.hub import imported_folder, published_name
from sepc_zoo.config import config_to_json
from sepc_zoo.factory import load_model
from sepc_zoo.models.detector import Detector
from sepc_zoo.registry import AUTHORS_WEIGHTS, DRIVE_URL

PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml")


def import_model(name: str, file: str | Path | None = None, url: str = DRIVE_URL) -> Path:
    """Put a published model where ``create_model(name, pretrained=True)`` finds it offline.

    Args:
        name: such as ``"fsaf_r50_sepc"``.
        file: the checkpoint, where it was downloaded before.
        url: to download it from; ``{id}`` is its Google Drive id and ``{name}`` the model's name.

    Raises:
        CheckpointError: the file cannot be had, or is no checkpoint of this model.
        HubError: no weights of this name are published.
    """
    published = published_name(name)
    architecture = published.rpartition(".")[0]
    folder = imported_folder(published)
    if file is not None:
        model = from_authors(read_authors_checkpoint(file, architecture), architecture)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            path = download(architecture, Path(temporary) / f"{architecture}.pth", url)
            model = from_authors(read_authors_checkpoint(path, architecture), architecture)
    keep(model, folder)
    return folder


def download(name: str, path: Path, url: str = DRIVE_URL) -> Path:
    """The authors' checkpoint, from their Google Drive.

    Raises:
        CheckpointError: a page came in its place, or nothing.
    """
    try:
        import gdown
    except ImportError as error:
        raise CheckpointError(
            'downloading needs gdown: pip install "sepc_zoo[import]"; or give --file'
        ) from error

    address = url.format(id=AUTHORS_WEIGHTS[name][1], name=name)
    by_hand = f"open {address} in a browser, download it, and import it with --file"
    try:
        gdown.download(address, str(path), use_cookies=False)
    except gdown.exceptions.FileURLRetrievalError as error:  # it has met a page, and read it
        refuse_page(str(error), name, by_hand)
    except (gdown.exceptions.DownloadError, OSError) as error:
        raise CheckpointError(f"{name} cannot be downloaded: {error}; {by_hand}") from error
    if not path.is_file():
        raise CheckpointError(f"{name} cannot be downloaded from {address}; {by_hand}")
    with path.open("rb") as file:
        start = file.read(20_000).lstrip().lower()
    if start.startswith(PAGE_STARTS):
        refuse_page(start.decode(errors="replace"), name, by_hand)
    return path


def refuse_page(text: str, name: str, by_hand: str) -> NoReturn:
    """Google Drive answers with a page where too many have asked, or wants to know who asks.

    Args:
        text: of the page, or what gdown makes of it.

    Raises:
        CheckpointError: says which page came.
    """
    text = " ".join(text.lower().split())
    if "quota" in text or "too many users" in text:
        reason = "its download quota is used up for today"
    elif any(phrase in text for phrase in ("sign in", "signin", "log in")):
        reason = "it asks for a login"
    elif "change the permission" in text:  # gdown's guess at a page without the file's address
        reason = "it asks for a login, or too many have downloaded it today"
    else:
        reason = "a web page came in place of the file"
    raise CheckpointError(f"Google Drive does not give {name}: {reason}; {by_hand}")


def keep(model: Detector, folder: Path) -> None:
    """Put a model in a folder, which is only there once the model is whole and builds again.

    Raises:
        CheckpointError: it does not.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".importing-") as temporary:
        new = save_model(model, Path(temporary) / folder.name)
        verify(model, new)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def verify(model: Detector, folder: Path) -> None:
    """What was written builds the same model again.

    Raises:
        CheckpointError: it does not.
    """
    again = load_model(folder)
    state = again.state_dict()
    same = config_to_json(again.config) == config_to_json(model.config) and all(
        torch.equal(value, state[key]) for key, value in model.state_dict().items()
    )
    if not same:
        raise CheckpointError(f"{folder} does not hold what was written to it; is the disk sound?")
