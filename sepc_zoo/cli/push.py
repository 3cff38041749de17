"""Put a model folder on the Hugging Face Hub."""

import argparse
import json
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sepc_zoo.checkpoints.card import LOCAL_SOURCE
from sepc_zoo.checkpoints.folder import CARD_FILE, METRICS_FILE, save_model
from sepc_zoo.checkpoints.hub import push_folder
from sepc_zoo.errors import HubError
from sepc_zoo.factory import load_model
from sepc_zoo.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIR", help="model folder, such as runs/cells/best")
    parser.add_argument(
        "repo_id",
        type=repository,
        metavar="ORG/NAME",
        help="repository, made where there is none",
    )
    parser.add_argument("--private", action="store_true", default=None, help="a new repository is")
    parser.add_argument("--revision", metavar="BRANCH", help="to commit to, instead of main")
    parser.add_argument("--create-pr", action="store_true", help="as a pull request")
    parser.add_argument("--metrics", metavar="FILE", help="metrics.json of validate, for the card")
    parser.add_argument("--dataset", metavar="NAME", help="that they were measured on")
    parser.add_argument("--license", metavar="ID", help="for the card, such as apache-2.0")
    parser.add_argument("--message", default="Upload a detector", help="of the commit")


def repository(text: str) -> str:
    """The name of a repository on the command line, refused before anything is done for it."""
    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if "/" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a repository: expected ORG/NAME")
    return text


def run(args: argparse.Namespace) -> int:
    address = push(
        Path(args.model),
        args.repo_id,
        metrics=None if args.metrics is None else read_metrics(Path(args.metrics)),
        dataset=args.dataset,
        license=args.license,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        commit_message=args.message,
    )
    print(f"{address}\nuse it: sepc-zoo predict PHOTO --model hf-hub:{args.repo_id}")
    return 0


def push(
    folder: Path,
    repo_id: str,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    license: str | None = None,
    **options: Any,
) -> str:
    """Push a model folder that loads, its card told where it is; the address of the commit.

    Args:
        metrics: for the card; by default it stays as training wrote it.
        dataset: that they were measured on.
        license: of the weights, by its id on the hub, for the card.
        options: of ``push_folder``.

    Raises:
        HubError: the folder is no model, or the hub refuses.
    """
    model = load_model(f"local-dir:{folder}")
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        save_model(model, copy, metrics=metrics, dataset=dataset, repo_id=repo_id)
        card, metrics_file = folder / CARD_FILE, folder / METRICS_FILE
        if metrics is not None:
            write_json(copy / METRICS_FILE, metrics)
        elif card.is_file():
            text = card.read_text(encoding="utf-8").replace(LOCAL_SOURCE, f"hf-hub:{repo_id}")
            (copy / CARD_FILE).write_text(text, encoding="utf-8")
            if metrics_file.is_file():
                shutil.copy(metrics_file, copy)
        if license is not None:
            told = ModelCard.load(copy / CARD_FILE)
            told.data.license = license
            told.save(copy / CARD_FILE)
        return push_folder(copy, repo_id, **options)


def push_or_say_how(folder: Path, repo_id: str) -> str | None:
    """Push what was made just now, and print its address; where that fails, how to do it later."""
    try:
        print(f"on the hub: {push(folder, repo_id)}")
    except (HubError, OSError) as error:
        later = f"sepc-zoo push {shlex.quote(str(folder))} {repo_id}"
        return f"not on the hub: {error}\nthe model is kept; push it later: {later}"
    return None


def read_metrics(path: Path) -> dict[str, Any]:
    """What ``validate`` wrote.

    Raises:
        HubError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HubError(
            f"{path} has no metrics: {error}; `sepc-zoo validate` writes them"
        ) from error
