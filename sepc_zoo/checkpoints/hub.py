"""Models on the Hugging Face Hub: to a model folder and back.

Downloads, their cache, resumption and locks are huggingface_hub's.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from sepc_zoo.checkpoints.folder import (
    CARD_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    WEIGHTS_FILE,
    read_config,
    save_model,
)
from sepc_zoo.errors import HubError
from sepc_zoo.models.detector import Detector
from sepc_zoo.registry import AUTHORS_TAG, AUTHORS_WEIGHTS, model_config

HUB_PREFIX, LOCAL_PREFIX = "hf-hub:", "local-dir:"
DEFAULT_ORGANISATION = "sepc-zoo"
PUSHED = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, METRICS_FILE]  # detections may be huge
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
# Whatever its HTTP library raises where nobody answers, which is another one in each major version.
TRANSPORT_ERRORS: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)
# Of a push: a file that the storage does not take is a RuntimeError, a strange answer a ValueError.
PUSH_ERRORS: tuple[type[Exception], ...] = (*TRANSPORT_ERRORS, RuntimeError, ValueError)
ANSWER_SECONDS = 10.0  # that the hub has to answer where a file is


class Request(NamedTuple):
    """What is asked of the hub."""

    repo_id: str
    revision: str | None = None  # branch, tag, commit or refs/pr/N
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False

    @property
    def where(self) -> str:
        return f"{self.repo_id} at revision {self.revision or 'main'}"


def find_model(name: str, pretrained: bool, **download: Any) -> Path | None:
    """The folder with the weights that a name asks for; None where it asks for none.

    Args:
        download: ``cache_dir``, ``revision``, ``token`` and ``local_files_only``.

    Raises:
        HubError: the weights are not to be had.
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
    """The folder with the published weights of a name: imported before, or from the hub."""
    published = published_name(name)
    imported = imported_folder(published)
    if not download.get("revision") and (imported / WEIGHTS_FILE).is_file():
        return imported
    organisation = os.environ.get("SEPC_ZOO_HUB_ORG", DEFAULT_ORGANISATION)
    request = Request(f"{organisation}/{published}", **download)
    try:
        return fetch_model(request)
    except HubError as error:
        if isinstance(error.__cause__, GatedRepoError | RevisionNotFoundError):
            raise
        importing = (
            f"`sepc-zoo import {name.partition('.')[0]}` fetches the authors' checkpoint and "
            "converts it"
        )
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise HubError(
                f"{name} is neither on the hub ({request.where}) nor imported here ({imported}): "
                + importing
            ) from error
        if isinstance(error.__cause__, LocalEntryNotFoundError):  # who knows what the hub has?
            raise HubError(f"{error}; or {importing}") from error
        raise


def published_name(name: str) -> str:
    """The full name of published weights, with their tag.

    Raises:
        HubError: none of this name are published.
    """
    config = model_config(name)
    if config.architecture not in AUTHORS_WEIGHTS:
        raise HubError(
            f"no weights of {name} are published; list_models(pretrained=True) names those that "
            "are, and pretrained_backbone=True starts from ImageNet"
        )
    return f"{config.architecture}.{config.weights.tag or AUTHORS_TAG}"


def imported_folder(published: str) -> Path:
    """Where ``sepc-zoo import`` keeps a model: in ``SEPC_ZOO_HOME``, or beside the hub's cache."""
    home = os.environ.get("SEPC_ZOO_HOME") or Path(constants.HF_HOME) / "sepc_zoo"
    return Path(home).expanduser() / published


def fetch_model(request: Request) -> Path:
    """The folder of a model in the cache: its config, checked, and then its weights.

    Raises:
        HubError: with a text of its own for each case; nothing is waited for twice.
    """
    config = fetch_file(request, CONFIG_FILE)
    read_config(config.parent)
    # Both files of one commit, even if the branch moves in between.
    weights = fetch_file(request._replace(revision=config.parent.name), WEIGHTS_FILE)
    return weights.parent


def fetch_file(request: Request, file: str) -> Path:
    """A file of a repository, from the cache where the hub says that it is the same."""
    reachable, unreachable = request, None
    if not request.local_files_only:
        # hf_hub_download would try again for half a minute where nobody answers.
        unreachable = ask(request, file)
        reachable = request._replace(local_files_only=unreachable is not None)
    try:
        options = reachable._asdict()
        path = Path(hf_hub_download(options.pop("repo_id"), file, **options))
    except LocalEntryNotFoundError as error:
        raise HubError(not_cached(request, file, unreachable)) from error
    except TRANSPORT_ERRORS as error:
        raise HubError(
            f"{file} of {request.where} did not arrive whole: {first_line(error)}; try again"
        ) from error
    check_hash(path, request)
    return path


def ask(request: Request, file: str) -> Exception | None:
    """Ask the hub once where a file is; what kept it from answering, None where it answered.

    Raises:
        HubError: the hub's answer is no.
    """
    try:
        url = hf_hub_url(request.repo_id, file, revision=request.revision)
        get_hf_file_metadata(url, token=request.token, timeout=ANSWER_SECONDS)
    except HFValidationError as error:
        raise HubError(
            f"{request.repo_id!r} is no name of a repository: expected org/name"
        ) from error
    except REFUSALS as error:
        explain = next(text for kind, text in EXPLAINED.items() if isinstance(error, kind))
        raise HubError(explain(request, file, error)) from error
    except TRANSPORT_ERRORS as error:
        return error
    return None


def no_repository(request: Request, _: str, error: Any) -> str:
    if error.response.status_code == 401:
        return (
            f"{request.repo_id} does not exist, or is private and you are not logged in: check the "
            "name, or log in with `hf auth login` or token=…"
        )
    return (
        f"{request.repo_id} does not exist, or your token may not see it: check the name on "
        f"{constants.ENDPOINT}"
    )


def no_file(request: Request, file: str, _: Any) -> str:
    pickles = [name for name in list_files(request) if name.endswith(PICKLES)]
    if pickles:
        return (
            f"{request.where} has no {file}, but {', '.join(pickles[:3])}: a pickle may run code "
            "and is never loaded. A checkpoint of the SEPC authors can be converted with "
            "`sepc-zoo convert`; ask the repository's owner for safetensors otherwise"
        )
    return f"{request.where} has no {file}: it is no model of this library"


# In this order: a gated repository is also one that is not found.
EXPLAINED: dict[type[Exception], Callable[[Request, str, Any], str]] = {
    GatedRepoError: lambda request, _, __: (
        f"{request.repo_id} is gated: ask for access on {constants.ENDPOINT}/{request.repo_id}, "
        "then log in with `hf auth login`"
    ),
    RepositoryNotFoundError: no_repository,
    RevisionNotFoundError: lambda request, _, __: (
        f"{request.repo_id} has no revision {request.revision!r}: {revisions(request)}"
    ),
    EntryNotFoundError: no_file,
}
REFUSALS = tuple(EXPLAINED)


WHAT_TO_DO = {  # after an answer that tells no more than its number
    401: "the token is not valid, log in again with `hf auth login`",
    403: "the hub lets nobody with this token have it, ask its owner",
}


def not_cached(request: Request, file: str, unreachable: Exception | None) -> str:
    """What to say of a file that is neither in the cache nor to be fetched."""
    where = f"{file} of {request.where}"
    status = getattr(getattr(unreachable, "response", None), "status_code", None)
    if status is not None:
        return (
            f"{where} is not in the cache, and {constants.ENDPOINT} answered with error {status}: "
            + WHAT_TO_DO.get(status, "try again later")
        )
    if unreachable is None or isinstance(unreachable, OfflineModeIsEnabled):
        return (
            f"{where} is not in the cache, and the hub was not to be asked (local_files_only, or "
            "HF_HUB_OFFLINE): load it once online, or give a folder as local-dir:/path"
        )
    return (
        f"{where} is not in the cache, and {constants.ENDPOINT} cannot be reached "
        f"({first_line(unreachable)}): load it once online, or give a folder as local-dir:/path"
    )


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def list_files(request: Request) -> list[str]:
    """The files of a repository; none where the hub does not tell."""
    try:
        api = HfApi(token=request.token)
        return api.list_repo_files(request.repo_id, revision=request.revision)
    except TRANSPORT_ERRORS:
        return []


def revisions(request: Request) -> str:
    """The branches and tags of a repository, for messages."""
    try:
        refs = HfApi(token=request.token).list_repo_refs(request.repo_id)
    except TRANSPORT_ERRORS:
        return f"look at {constants.ENDPOINT}/{request.repo_id}"
    return "there are " + ", ".join(ref.name for ref in (*refs.branches, *refs.tags))


def check_hash(path: Path, request: Request) -> None:
    """The cache names a file by its content's hash, which tells whether it is what the hub has.

    Raises:
        HubError: it was cut or altered on its way or since.
    """
    expected = path.resolve().name
    with path.open("rb") as file:
        if len(expected) == 64:  # a large file's SHA-256
            actual = sha_fileobj(file).hex()
        elif len(expected) == 40:  # a small one's in git
            actual = git_hash(file.read())
        else:  # a cache without symbolic links
            return
    if actual != expected:
        raise HubError(
            f"{path.name} of {request.where} is not what the hub has, it was cut or altered: "
            f"delete {path.resolve()} and load it again"
        )


def push_to_hub(
    model: Detector,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload a detector",
) -> str:
    """Put a model on the hub: config, weights and card in one commit.

    Args:
        repo_id: ``org/name``; the repository is made where there is none.
        private: of a new repository.
        revision: the branch to commit to, made where there is none.
        create_pr: as a pull request.
        metrics: ours, as ``validate`` gives them, for the card.
        dataset: that they were measured on.

    Returns:
        The address of the commit or pull request.

    Raises:
        HubError: the hub refuses; the message says what to do.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder, metrics=metrics, dataset=dataset, repo_id=repo_id)
        return push_folder(
            folder,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
            commit_message=commit_message,
        )


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str = "Upload a detector",
    repo_type: str = "model",
) -> str:
    """Put the files of a folder on the hub in one commit; its address."""
    api = HfApi(token=token)
    sdk = "static" if repo_type == "space" else None
    try:
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=repo_type)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            repo_type=repo_type,
            allow_patterns=PUSHED,
        )
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository: expected org/name") from error
    except PUSH_ERRORS as error:
        raise HubError(refused_push(repo_id, error)) from error
    return commit.pr_url or commit.commit_url


def add_to_collection(
    org: str, title: str, repositories: Sequence[str], *, private: bool, token: str | None = None
) -> str:
    """Gather models in a collection of an organisation, made where there is none; its address."""
    api = HfApi(token=token)
    try:
        collection = api.create_collection(title, namespace=org, private=private, exists_ok=True)
        for repo_id in repositories:
            api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True)
    except PUSH_ERRORS as error:
        raise HubError(refused_push(f"{org}: {title}", error)) from error
    return collection.url


def refused_push(repo_id: str, error: Exception) -> str:
    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        error = error.__cause__  # which says why, where the other names the file alone
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"{repo_id} is not yours to write to with this token: log in with `hf auth login` and "
            "a token that may write, or choose another name"
        )
    if status is not None:
        return (
            f"{repo_id}: the hub did not take the files ({first_line(error)}); nothing was "
            "committed"
        )
    return (
        f"{repo_id}: the hub's answer did not come ({first_line(error)}): look at "
        f"{constants.ENDPOINT} whether it has the files, or push again"
    )
