"""Find published weights in the local store or on the hub, or import them from their publisher."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from huggingface_hub import constants

from sepc_zoo.checkpoints.convert import CONVERTERS
from sepc_zoo.checkpoints.convert.pickles import CheckpointError, read_state_dict
from sepc_zoo.checkpoints.download import DownloadError, cannot_write, download, hash_of
from sepc_zoo.checkpoints.folder import read_model, save_model
from sepc_zoo.checkpoints.hub import (
    NotCachedError,
    NotOnHubError,
    Request,
    fetch_model,
)
from sepc_zoo.checkpoints.layout import WEIGHTS_FILE, check_folder
from sepc_zoo.config import config_to_json
from sepc_zoo.errors import HubError
from sepc_zoo.models.detector import Detector
from sepc_zoo.published import PUBLISHERS, Published, find_row
from sepc_zoo.registry import HUB_PREFIX, LOCAL_PREFIX, model_config
from sepc_zoo.terminal import say

DEFAULT_ORGANISATION = "sepc-zoo"


def find_model(
    name: str, pretrained: bool, needs_weights: bool = True, **download: Any
) -> Path | None:
    """The model folder that a name asks for; None for a name without weights.

    Args:
        name: of a model, ``"hf-hub:org/repo[@revision]"`` or ``"local-dir:/path"``.
        pretrained: whether a model's name asks for its published weights.
        needs_weights: whether a folder or repository must have weights beside its config.
        download: ``cache_dir``, ``revision``, ``token`` and ``local_files_only``.

    Raises:
        HubError: the weights cannot be found; the message says what to do.
    """
    if name.startswith(LOCAL_PREFIX):
        folder = Path(name.removeprefix(LOCAL_PREFIX)).expanduser()
        check_folder(folder, needs_weights)
        return folder
    if name.startswith(HUB_PREFIX):
        repo_id, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
        own = {"revision": revision} if revision else {}
        return fetch_model(Request(repo_id, **download | own), needs_weights)
    return find_published(name, **download) if pretrained else None


def find_published(name: str, **download: Any) -> Path:
    """The folder with the published weights of a name, wherever they are.

    The search order is the local store, the hub (asked once) and the publisher's address. With a
    revision, which only the hub has, the hub alone is asked. Errors are those of ``import_model``.
    """
    row = published_row(name)
    organisation = os.environ.get("SEPC_ZOO_HUB_ORG", DEFAULT_ORGANISATION)
    request = Request(f"{organisation}/{row.name}", **download)
    if request.revision is None and is_kept(kept_folder(row)):
        return kept_folder(row)
    try:
        return fetch_model(request)
    except (NotOnHubError, NotCachedError) as error:
        if request.local_files_only or constants.HF_HUB_OFFLINE:
            raise HubError(
                f"{error}; or `sepc-zoo import {row.name}` once online downloads and converts the "
                f"checkpoint of {PUBLISHERS[row.publisher].title}"
            ) from error
        if request.revision is not None:
            raise
    return import_model(row.name, unless_kept=True)


def published_row(name: str, publisher: str | None = None) -> Published:
    """The row of published weights of a name, by ``publisher`` or any; without a tag the first.

    A name that builds no model raises an UnknownModelError, one without weights a HubError.
    """
    model_config(name)  # raises for an unknown name
    row = find_row(name, publisher)
    if row is None:
        by = f" by {PUBLISHERS[publisher].title}" if publisher else ""
        raise HubError(
            f"no weights of {name} are published{by}; list_models(pretrained=True) names those "
            "that are, and pretrained_backbone=True starts from ImageNet"
        )
    return row


def local_store() -> Path:
    """The local store: ``SEPC_ZOO_HOME``, or a folder beside the hub's cache."""
    folder = os.environ.get("SEPC_ZOO_HOME") or Path(constants.HF_HOME) / "sepc_zoo"
    return Path(folder).expanduser()


def kept_folder(row: Published) -> Path:
    return local_store() / row.name


def is_kept(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).is_file()


def import_model(
    name: str,
    file: str | Path | None = None,
    url: str | None = None,
    publisher: str | None = None,
    unless_kept: bool = False,
) -> Path:
    """Convert a published checkpoint and keep it where ``pretrained=True`` finds it offline.

    The folder appears once it is complete and was loaded as a check. Other processes that want the
    same model wait.

    Args:
        name: name of a model such as ``"fsaf_r50_sepc"``; without a tag the first row of this name.
        file: the checkpoint, if it was downloaded before.
        url: address to download from instead of the publisher's, as in ``SEPC_ZOO_MIRROR``.
        publisher: publisher of the checkpoint, a key of ``PUBLISHERS``.
        unless_kept: do nothing if the model is in the local store already.

    Returns:
        The model folder in the local store.

    Raises:
        HubError: no weights of this name are published, or they cannot be downloaded.
        CheckpointError: the file is no checkpoint of this model.
    """
    row = published_row(name, publisher)
    folder = kept_folder(row)
    work = folder.parent / ".importing" / row.name
    try:
        with locked(row):
            if unless_kept and is_kept(folder):
                return folder
            work.mkdir(parents=True, exist_ok=True)
            try:
                checkpoint = own_checkpoint(file, row) if file else fetch_checkpoint(row, work, url)
                state = read_state_dict(checkpoint, row.name)
                model = CONVERTERS[row.publisher](state, row.name)
                shutil.rmtree(work / "model", ignore_errors=True)  # left by a killed process
                new = save_model(model, work / "model")
                verify(model, new)
                shutil.rmtree(folder, ignore_errors=True)
                new.rename(folder)
            except Exception:
                shutil.rmtree(work, ignore_errors=True)
                raise
            finally:
                shutil.rmtree(work / "model", ignore_errors=True)
            shutil.rmtree(work)
    except OSError as error:
        raise HubError(f"{row.name}: {cannot_write(folder, error)}") from error
    return folder


@contextmanager
def locked(row: Published) -> Iterator[None]:
    """Hold the lock of a row; the system releases it if the process dies."""
    folder = local_store() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{row.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log(f"waiting for another process that imports {row.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch_checkpoint(row: Published, work: Path, url: str | None = None) -> Path:
    """Download the checkpoint of a row into the folder ``work``; a HubError says what to do."""
    address = address_of(row, url)
    publisher = PUBLISHERS[row.publisher]
    log(f"downloading {row.name} from {address}: weights of {publisher.title}; {publisher.terms}")
    path = work / file_name(row)
    try:
        download(address, path, row.sha256)
    except DownloadError as error:
        raise HubError(
            f"cannot download {row.name}: {error}; or download {row.url} in a browser, and import "
            f"it: sepc-zoo import {row.name} --file FILE"
        ) from error
    return path


def own_checkpoint(file: str | Path, row: Published) -> Path:
    """The path of a checkpoint that the user has; warns if it is not the published file."""
    path = Path(file)
    if row.sha256 and path.is_file() and not hash_of(path).startswith(row.sha256):
        log(f"{file} is not the file that was published as {row.name}: its SHA-256 differs")
    return path


def address_of(row: Published, url: str | None = None) -> str:
    """The address of a checkpoint, at its publisher or a mirror.

    A mirror is a folder of such files, or an address in which ``{file}`` stands for the name of the
    file, ``{name}`` for that of the model with its tag, ``{id}`` for the end of the publisher's
    address.
    """
    mirror = url or os.environ.get("SEPC_ZOO_MIRROR")
    if not mirror:
        return row.url
    if not re.search(r"\{(file|name|id)\}", mirror):
        mirror = mirror if url else f"{mirror.rstrip('/')}/{{file}}"
    entries = {"file": file_name(row), "name": row.name}
    entries["id"] = re.split("[/=]", row.url)[-1]
    return re.sub(r"\{(file|name|id)\}", lambda match: entries[match[1]], mirror)


def file_name(row: Published) -> str:
    """The name of a published file; a file of Google Drive gets the name of its model."""
    return row.url.rpartition("/")[2] if row.url.endswith(".pth") else f"{row.name}.pth"


def log(text: str) -> None:
    say(f"sepc_zoo: {text}", error=True, flush=True)


def verify(model: Detector, folder: Path) -> None:
    """Raise a CheckpointError unless a folder builds the same model again."""
    again = read_model(folder)
    state = again.state_dict()
    same = config_to_json(again.config) == config_to_json(model.config) and all(
        torch.equal(value, state[key]) for key, value in model.state_dict().items()
    )
    if not same:
        raise CheckpointError(f"{folder} does not hold what was written to it; check the disk")
