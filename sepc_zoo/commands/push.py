"""Put a model folder on the Hugging Face Hub."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from sepc_zoo.errors import HubError
from sepc_zoo.factory import load_model
from sepc_zoo.files import write_json
from sepc_zoo.hub import push_folder
from sepc_zoo.model_folder import save_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIR", help="model folder, such as runs/cells/best")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="repository, made where there is none")
    parser.add_argument("--private", action="store_true", default=None, help="a new repository is")
    parser.add_argument("--revision", metavar="BRANCH", help="to commit to, instead of main")
    parser.add_argument("--create-pr", action="store_true", help="as a pull request")
    parser.add_argument("--dataset", metavar="NAME", help="that metrics.json was measured on")
    parser.add_argument("--message", default="Upload a detector", help="of the commit")


def run(args: argparse.Namespace) -> int:
    address = push(
        Path(args.model),
        args.repo_id,
        dataset=args.dataset,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        commit_message=args.message,
    )
    print(f"{address}\nuse it: sepc-zoo predict PHOTO --model hf-hub:{args.repo_id}")
    return 0


def push(folder: Path, repo_id: str, dataset: str | None = None, **options: Any) -> str:
    """Push a model folder that loads, with a card for its place on the hub; the commit's address.

    Raises:
        HubError: the folder is no model, or the hub refuses.
    """
    model = load_model(f"local-dir:{folder}")
    metrics = read_metrics(folder)
    with tempfile.TemporaryDirectory() as temporary:
        save_model(model, temporary, metrics=metrics, dataset=dataset, repo_id=repo_id)
        if metrics is not None:
            write_json(Path(temporary) / "metrics.json", metrics)
        return push_folder(temporary, repo_id, **options)


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Our metrics beside a model; None where it was not validated."""
    path = folder / "metrics.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HubError(f"{path} is no JSON: {error}; validate the model again") from error
