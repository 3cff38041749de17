"""Published weights: found in the local store or on the hub, imported from their publishers."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub import constants

from sepc_zoo.checkpoints.convert import CONVERTERS
from sepc_zoo.checkpoints.convert.sepc_authors import CheckpointError
from sepc_zoo.checkpoints.folder import CONFIG_FILE, WEIGHTS_FILE, read_model, save_model
from sepc_zoo.checkpoints.hub import (
    HUB_PREFIX,
    LOCAL_PREFIX,
    NotCachedError,
    NotOnHubError,
    Request,
    fetch_model,
)
from sepc_zoo.config import config_to_json
from sepc_zoo.errors import HubError
from sepc_zoo.models.detector import Detector
from sepc_zoo.published import Published, find_row
from sepc_zoo.registry import model_config

DEFAULT_ORGANISATION = "sepc-zoo"
PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml")


def find_model(name: str, pretrained: bool, **download: Any) -> Path | None:
    """The folder with the weights that a name asks for; None if it asks for none.

    Args:
        name: of a model, ``"hf-hub:org/repo[@revision]"`` or ``"local-dir:/path"``.
        pretrained: whether a model's name asks for its published weights.
        download: ``cache_dir``, ``revision``, ``token`` and ``local_files_only``.

    Raises:
        HubError: the weights cannot be found; the message says what to do.
    """
    if name.startswith(LOCAL_PREFIX):
        folder = Path(name.removeprefix(LOCAL_PREFIX)).expanduser()
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / file).is_file():
                raise HubError(f"{folder} is no model folder: it has no {file}")
        return folder
    if name.startswith(HUB_PREFIX):
        repo_id, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
        return fetch_model(
            Request(repo_id, **download | ({"revision": revision} if revision else {}))
        )
    return find_published(name, **download) if pretrained else None


def find_published(name: str, **download: Any) -> Path:
    """The folder with the published weights of a name: from the local store, then from the hub.

    Raises:
        HubError: there are no such weights, or they are neither here nor on the hub.
    """
    row = published_row(name)
    folder = kept_folder(row)
    if not download.get("revision") and (folder / WEIGHTS_FILE).is_file():
        return folder
    organisation = os.environ.get("SEPC_ZOO_HUB_ORG", DEFAULT_ORGANISATION)
    request = Request(f"{organisation}/{row.name}", **download)
    advice = f"`sepc-zoo import {row.architecture}` downloads and converts the original checkpoint"
    try:
        return fetch_model(request)
    except NotOnHubError as error:
        raise HubError(
            f"{name} is neither on the hub ({request.where}) nor imported ({folder}): {advice}"
        ) from error
    except NotCachedError as error:
        raise HubError(f"{error}; or {advice}") from error


def published_row(name: str) -> Published:
    """The row of published weights that a name stands for; without a tag the first one.

    Raises:
        UnknownModelError: the name builds no model.
        HubError: no weights of this model are published.
    """
    model_config(name)  # raises for an unknown name
    row = find_row(name)
    if row is None:
        raise HubError(
            f"no weights of {name} are published; list_models(pretrained=True) names those that "
            "are, and pretrained_backbone=True starts from ImageNet"
        )
    return row


def kept_folder(row: Published) -> Path:
    """Where imported weights are kept: in ``SEPC_ZOO_HOME``, or beside the hub's cache."""
    home = os.environ.get("SEPC_ZOO_HOME") or Path(constants.HF_HOME) / "sepc_zoo"
    return Path(home).expanduser() / row.name


def import_model(name: str, file: str | Path | None = None, url: str | None = None) -> Path:
    """Convert a published checkpoint and keep it where ``pretrained=True`` finds it offline.

    Args:
        name: such as ``"fsaf_r50_sepc"``.
        file: the checkpoint, if it was downloaded before.
        url: address to download from instead of the publisher's. ``{id}`` stands for the last part
            of that address, ``{name}`` for the model's name.

    Returns:
        The model folder.

    Raises:
        HubError: no weights of this name are published, or they cannot be downloaded.
        CheckpointError: the file is no checkpoint of this model.
    """
    row = published_row(name)
    with tempfile.TemporaryDirectory() as temporary:
        path = file or download(row, Path(temporary) / f"{row.name}.pth", url)
        model = CONVERTERS[row.publisher](path, row.name)
    return keep(model, kept_folder(row))


def download(row: Published, path: Path, url: str | None = None) -> Path:
    """Download a published checkpoint to ``path``.

    Raises:
        HubError: there is no file at the address, or a web page.
    """
    try:
        import gdown
    except ImportError as error:
        raise HubError(
            'downloading needs gdown: pip install "sepc_zoo[import]"; or give --file'
        ) from error

    address = (url or row.url).format(id=re.split("[/=]", row.url)[-1], name=row.architecture)
    by_hand = f"open {address} in a browser, download it, and import it with --file"
    try:
        gdown.download(address, str(path), use_cookies=False)
    except gdown.exceptions.FileURLRetrievalError as error:  # it read a page
        refuse_page(str(error), row, by_hand)
    except (gdown.exceptions.DownloadError, OSError) as error:
        raise HubError(f"cannot download {row.name}: {error}; {by_hand}") from error
    if not path.is_file():
        raise HubError(f"cannot download {row.name} from {address}; {by_hand}")
    with path.open("rb") as file:
        start = file.read(20_000).lstrip().lower()
    if start.startswith(PAGE_STARTS):
        refuse_page(start.decode(errors="replace"), row, by_hand)
    return path


def refuse_page(text: str, row: Published, by_hand: str) -> NoReturn:
    """Say why a web page came in place of a file: a used-up quota, a login.

    Args:
        text: content of the page, or what gdown makes of it.

    Raises:
        HubError: always.
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
    raise HubError(f"cannot download {row.name}: {reason}; {by_hand}")


def keep(model: Detector, folder: Path) -> Path:
    """Write a model folder that appears only once it is complete and builds the model again.

    Raises:
        CheckpointError: it does not build the same model.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".importing-") as temporary:
        new = save_model(model, Path(temporary) / folder.name)
        verify(model, new)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    return folder


def verify(model: Detector, folder: Path) -> None:
    """Check that a folder builds the same model again.

    Raises:
        CheckpointError: it does not.
    """
    again = read_model(folder)
    state = again.state_dict()
    same = config_to_json(again.config) == config_to_json(model.config) and all(
        torch.equal(value, state[key]) for key, value in model.state_dict().items()
    )
    if not same:
        raise CheckpointError(f"{folder} does not hold what was written to it; check the disk")
