"""Download model folders and backbones from the Hugging Face Hub.

huggingface_hub does caching, locks and resumed downloads. Every exception that it raises becomes a
HubError: its HTTP library changes with major versions, and a server may answer anything.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import timm
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from sepc_zoo.checkpoints.download import MAX_BYTES, too_large
from sepc_zoo.checkpoints.folder import read_config
from sepc_zoo.checkpoints.layout import CONFIG_FILE, WEIGHTS_FILE
from sepc_zoo.errors import HubError
from sepc_zoo.files import write_atomically

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
NAME_IN_CACHE = re.compile(r"\w[\w.-]{0,127}")  # ETags and commits become names of files
TIMEOUT = 10.0  # seconds to wait until the hub says where a file is
BACKBONE_TIMEOUT = 2.0  # TIMEOUT for a backbone, short because training can start from a file
ONLINE = "load it once online"


class NotOnHubError(HubError):
    """The hub has no such repository, or hides it from this user."""


class NotCachedError(HubError):
    """A file is not in the cache, and the hub did not answer or must not be asked."""


class StrangeAnswer(Exception):  # noqa: N818
    """A server answered that is no hub."""


class Request(NamedTuple):
    """A repository at a revision, and how to download from it."""

    repo_id: str
    revision: str | None = None  # branch, tag, commit or refs/pr/N
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False

    @property
    def where(self) -> str:
        return f"{self.repo_id} at revision {self.revision or 'main'}"


def fetch_model(request: Request, needs_weights: bool = True) -> Path:
    """Download a model folder into the cache: first its config, which is checked, then its weights.

    A HubError names the cause and what to do; an unreachable hub is asked once.
    """
    config = fetch_file(request, CONFIG_FILE)
    read_config(config.parent)
    if not needs_weights:
        return config.parent
    # Both files come from one commit, even if the branch moves in between.
    return fetch_file(request._replace(revision=config.parent.name), WEIGHTS_FILE).parent


def fetch_backbone(name: str, **download: Any) -> Path | None:
    """Download timm's ImageNet weights of a backbone unless they are in the cache.

    Returns a safetensors file; None for a model that timm does not keep on the hub. ``download``
    has ``cache_dir``, ``token`` and ``local_files_only``. A HubError says why the hub refused; it
    is asked once, and waited for ``BACKBONE_TIMEOUT`` seconds.
    """
    known = timm.get_pretrained_cfg(name)
    source = known.hf_hub_id if known and known.custom_load != "hf" else None
    if source is None or not source.startswith("timm/"):
        return None
    repo_id, _, revision = source.partition("@")
    request = Request(repo_id, **download | ({"revision": revision} if revision else {}))
    return fetch_file(request, WEIGHTS_FILE, BACKBONE_TIMEOUT, ONLINE)


def fetch_file(
    request: Request,
    file: str,
    timeout: float = TIMEOUT,
    advice: str = f"{ONLINE}, or give a folder as local-dir:/path",
) -> Path:
    """Download a file of a repository unless the cache has the version that the hub has.

    Args:
        timeout: seconds to wait until the hub says where the file is.
        advice: what to do if the file is not in the cache and the hub does not answer.
    """
    # hf_hub_download alone would retry for half a minute if the hub does not answer.
    unreachable = None if request.local_files_only else ask(request, file, timeout)
    offline = request.local_files_only or unreachable is not None
    options = request._replace(local_files_only=offline)._asdict()
    try:
        path = Path(hf_hub_download(filename=file, **options))
    except LocalEntryNotFoundError as error:
        raise NotCachedError(not_cached(request, file, unreachable, advice)) from error
    except Exception as error:
        reason = first_line(error)
        if "Consistency check" in reason:
            reason = "it is incomplete, or a web page came in its place (log in to this network)"
        raise HubError(f"cannot download {file} of {request.where}: {reason}; try again") from error
    check_hash(path, request)
    return path


def ask(request: Request, file: str, timeout: float = TIMEOUT) -> Exception | None:
    """Ask the hub once where a file is; return the error if it did not answer.

    A HubError says why the hub refused.
    """
    try:
        url = hf_hub_url(request.repo_id, file, revision=request.revision)
        found = get_hf_file_metadata(url, token=request.token, timeout=timeout)
        check_answer(found.etag, found.commit_hash, found.size)
    except HFValidationError as error:
        raise HubError(invalid_name(request.repo_id)) from error
    except GatedRepoError as error:  # before its base class RepositoryNotFoundError
        raise HubError(
            f"{request.repo_id} is gated: ask for access on {constants.ENDPOINT}/{request.repo_id},"
            " then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise NotOnHubError(no_repository(request, error)) from error
    except RevisionNotFoundError as error:
        raise HubError(
            f"{request.repo_id} has no revision {request.revision!r}: {revisions(request)}"
        ) from error
    except EntryNotFoundError as error:
        raise HubError(no_file(request, file)) from error
    except Exception as error:
        return error
    return None


def check_answer(etag: str | None, commit: str | None, size: int | None) -> None:
    """Raise a StrangeAnswer if no hub would describe a file like this, before the file is used."""
    if not etag or not commit:
        raise StrangeAnswer(
            "answered without the headers of a hub: a login page of this network is in between, or "
            "HF_ENDPOINT is no whole mirror"
        )
    if not NAME_IN_CACHE.fullmatch(etag) or not NAME_IN_CACHE.fullmatch(commit):
        raise StrangeAnswer("answered with an ETag or a commit that is none")
    if (size or 0) > MAX_BYTES:
        raise StrangeAnswer(f"is no hub to trust: {too_large(size or 0)}")


def check_hash(path: Path, request: Request) -> None:
    """Raise a HubError unless a file in the cache has the hash that is its name.

    A marker beside the file keeps size and time of the last check; only a file that differs from
    its marker is hashed again.
    """
    blob = path.resolve()
    if len(blob.name) not in (40, 64):  # a cache without symbolic links does not know the hash
        return
    stat = blob.stat()
    marker, state = blob.with_name(f"{blob.name}.checked"), f"{stat.st_size} {stat.st_mtime_ns}"
    with suppress(OSError):
        if marker.read_text() == state:
            return
    with blob.open("rb") as file:  # large files are named by SHA-256, small ones as git does
        actual = sha_fileobj(file).hex() if len(blob.name) == 64 else git_hash(file.read())
    if actual != blob.name:
        blob.unlink(missing_ok=True)
        raise HubError(
            f"{path.name} of {request.where} is damaged: its hash is not the hub's; it was removed "
            "from the cache, try again"
        )
    with suppress(OSError):  # the cache may be read-only
        write_atomically(marker, lambda file: file.write_text(state))


def invalid_name(repo_id: str) -> str:
    return f"{repo_id!r} is no name of a repository: expected org/name"


def no_repository(request: Request, error: Any) -> str:
    if error.response.status_code == 401:
        return (
            f"{request.repo_id} does not exist, or is private and you are not logged in: check the "
            "name, or log in with `hf auth login` or token=…"
        )
    return (
        f"{request.repo_id} does not exist, or your token may not see it: check the name on "
        f"{constants.ENDPOINT}"
    )


def no_file(request: Request, file: str) -> str:
    try:
        api = HfApi(token=request.token)
        files = api.list_repo_files(request.repo_id, revision=request.revision)
    except Exception:
        files = []
    pickles = [name for name in files if name.endswith(PICKLES)]
    if not pickles:
        return f"{request.where} has no {file}: it is no model of this library"
    return (
        f"{request.where} has no {file}, but {', '.join(pickles[:3])}: a pickle may run code and "
        "is never loaded. `sepc-zoo convert` converts a checkpoint of the SEPC authors; for others "
        "ask the repository's owner for safetensors"
    )


def revisions(request: Request) -> str:
    """The branches and tags of a repository, for an error message."""
    try:
        refs = HfApi(token=request.token).list_repo_refs(request.repo_id)
    except Exception:
        return f"see {constants.ENDPOINT}/{request.repo_id}"
    return "there are " + ", ".join(ref.name for ref in (*refs.branches, *refs.tags))


def not_cached(request: Request, file: str, unreachable: Exception | None, advice: str) -> str:
    where = f"{file} of {request.where} is not in the cache, and"
    status = status_of(unreachable)
    if unreachable is None or isinstance(unreachable, OfflineModeIsEnabled):
        return f"{where} local_files_only or HF_HUB_OFFLINE forbids to download it: {advice}"
    if isinstance(unreachable, StrangeAnswer):
        return f"{where} {constants.ENDPOINT} {unreachable}; {advice}"
    if status is None:
        reason = first_line(unreachable)
        return f"{where} {constants.ENDPOINT} cannot be reached ({reason}): {advice}"
    remedy = {
        401: "the token is not valid, log in again with `hf auth login`",
        403: "the hub refuses access with this token, ask the repository's owner",
    }.get(status, "try again later")
    return f"{where} {constants.ENDPOINT} answered with error {status}: {remedy}"


def status_of(error: Exception | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def first_line(error: Exception) -> str:
    return f"{(str(error).strip() or type(error).__name__).splitlines()[0]:.300}"
