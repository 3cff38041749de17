"""Upload model folders to the Hugging Face Hub, with a page and a collection that list them."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from sepc_zoo.options import Options, option
from sepc_zoo.terminal import say


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Upload."""

    models: tuple[str, ...] = option(
        help="model folders, or names of imported models", metavar="MODEL", positional=True
    )
    org: str = option(help="organisation or user on the hub", metavar="ORG")
    private: bool | None = option(
        None, "make new repositories private (default: as the owner's settings say)"
    )
    title: str = option("sepc_zoo detectors", "title of the collection")


def run(arguments: Arguments) -> int:
    """Upload the folders, then the page of the organisation and its collection."""
    from sepc_zoo.checkpoints.layout import CARD_FILE
    from sepc_zoo.checkpoints.push import add_to_collection, push_folder
    from sepc_zoo.cli.publishing import organisation_page, push, repository_name

    org, folders = arguments.org, [folder_of(model) for model in arguments.models]
    repositories = [f"{org}/{repository_name(folder)}" for folder in folders]
    for folder, repo_id in zip(folders, repositories, strict=True):
        say(push(folder, repo_id, private=arguments.private))
    page = organisation_page(org, folders)
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / CARD_FILE).write_text(page, encoding="utf-8")
        say(push_folder(temporary, f"{org}/README", space_sdk="static"))
    is_private = bool(arguments.private)
    say(add_to_collection(org, arguments.title, repositories, private=is_private))
    return 0


def folder_of(model: str) -> Path:
    """A model folder, or the one where a published model is kept."""
    from sepc_zoo.checkpoints.sources import kept_folder
    from sepc_zoo.published import find_row

    row = find_row(model)
    return Path(model) if row is None or Path(model).is_dir() else kept_folder(row)
