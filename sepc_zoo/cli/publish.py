"""Put model folders on the Hugging Face Hub, with a page for the organisation that has them."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from sepc_zoo.checkpoints.folder import CARD_FILE, METRICS_FILE, read_config
from sepc_zoo.checkpoints.hub import add_to_collection, push_folder
from sepc_zoo.cli.push import push, read_metrics
from sepc_zoo.registry import neck_name

RUN_FOLDERS = ("best", "last")  # which are called by their run's name
PAGE = """\
# Detectors of {org}

Built with sepc_zoo; `sepc_zoo.create_model("hf-hub:{org}/NAME")` loads one. AP is ours, measured \
with `sepc-zoo validate`; a published figure is named as its authors'.

| model | method | backbone | neck | classes | AP | AP50 | authors' AP |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="DIR", help="model folders")
    parser.add_argument("--org", required=True, help="organisation or user on the hub")
    parser.add_argument("--private", action="store_true", default=None, help="new repositories are")
    parser.add_argument("--title", default="sepc_zoo detectors", help="of the collection")


def run(args: argparse.Namespace) -> int:
    folders = [Path(folder) for folder in args.models]
    repositories = [f"{args.org}/{repository_name(folder)}" for folder in folders]
    for folder, repo_id in zip(folders, repositories, strict=True):
        print(push(folder, repo_id, private=args.private))
    page = organisation_page(args.org, folders)
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / CARD_FILE).write_text(page, encoding="utf-8")
        print(push_folder(temporary, f"{args.org}/README", repo_type="space"))
    print(add_to_collection(args.org, args.title, repositories, private=bool(args.private)))
    return 0


def metrics_of(folder: Path) -> dict[str, Any]:
    """Ours, where the model was validated."""
    path = folder / METRICS_FILE
    return read_metrics(path) if path.exists() else {}


def repository_name(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name in RUN_FOLDERS else folder.name


def organisation_page(org: str, folders: list[Path]) -> str:
    """The README of an organisation: a table of its models, the best first."""
    rows = []
    for folder in folders:
        config, metrics = read_config(folder), metrics_of(folder)
        name = repository_name(folder)
        figures = [metrics.get("AP", -1), metrics.get("AP50", -1)]
        cells = [
            f"[{name}]({constants.ENDPOINT}/{org}/{name})",
            config.method.name,
            config.backbone.name,
            neck_name(config.neck),
            str(config.num_classes),
            *(f"{value:.3f}" if value >= 0 else "not measured" for value in figures),
            str(config.weights.authors_ap or "-"),
        ]
        rows.append((figures[0], f"| {' | '.join(cells)} |"))
    ordered = [row for _, row in sorted(rows, key=lambda item: -item[0])]
    front = "---\ntitle: README\nsdk: static\npinned: false\n---\n\n"
    return front + PAGE.format(org=org, rows="\n".join(ordered))
