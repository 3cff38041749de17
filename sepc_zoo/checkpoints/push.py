"""Push model folders to the Hugging Face Hub, and add them to collections."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.checkpoints.hub import first_line, invalid_name, status_of
from sepc_zoo.checkpoints.layout import CARD_FILE, CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE
from sepc_zoo.errors import HubError
from sepc_zoo.models.detector import Detector

# Without detections.json, which may be huge; with the files of Spaces and endpoints.
PUSHED = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, METRICS_FILE]
PUSHED += ["app.py", "handler.py", "requirements.txt"]


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
    """Push a model to the hub: config, weights and card in one commit.

    Args:
        model: a detector.
        repo_id: ``org/name``; a missing repository is created.
        private: whether a new repository is private.
        revision: branch to commit to; a missing one is created.
        create_pr: open a pull request instead.
        metrics: figures of ``validate`` for the card.
        dataset: name of the data that ``metrics`` were measured on.
        token: of the hub; by default that of ``hf auth login``.
        commit_message: first line of the commit's message.

    Returns:
        Address of the commit or pull request.

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
    space_sdk: str | None = None,
) -> str:
    """Push the files of a model folder, or of a Space's, in one commit; returns its address.

    Args:
        space_sdk: gradio or static for a Space, None for a model.
    """
    api = HfApi(token=token)
    repo_type = "model" if space_sdk is None else "space"
    try:
        api.create_repo(
            repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=space_sdk
        )
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
        raise HubError(invalid_name(repo_id)) from error
    except Exception as error:
        raise HubError(refused_push(repo_id, error)) from error
    return commit.pr_url or commit.commit_url


def add_to_collection(
    org: str, title: str, repositories: Sequence[str], *, private: bool, token: str | None = None
) -> str:
    """Add models to a collection of an organisation, created if missing; returns its address."""
    api = HfApi(token=token)
    try:
        collection = api.create_collection(title, namespace=org, private=private, exists_ok=True)
        for repo_id in repositories:
            api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True)
    except Exception as error:
        raise HubError(refused_push(f"{org}: {title}", error)) from error
    return collection.url


def refused_push(repo_id: str, error: Exception) -> str:
    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        error = error.__cause__  # names the reason; the outer error names only the file
    status = status_of(error)
    if status in (401, 403):
        return (
            f"{repo_id} is not yours to write to with this token: log in with `hf auth login` and "
            "a token that may write, or choose another name"
        )
    if status is not None:
        return f"{repo_id}: the hub refused the files ({first_line(error)}); nothing was committed"
    return (
        f"{repo_id}: no answer from the hub ({first_line(error)}): look at {constants.ENDPOINT} "
        "whether it has the files, or push again"
    )
