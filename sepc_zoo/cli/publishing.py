"""Upload model folders after a check, and write the page that lists them."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, constants

from sepc_zoo.checkpoints.card import LOCAL_SOURCE
from sepc_zoo.checkpoints.folder import read_config, save_model
from sepc_zoo.checkpoints.layout import CARD_FILE, METRICS_FILE, metrics_of
from sepc_zoo.checkpoints.push import push_folder
from sepc_zoo.demo.space import write_handler, write_space
from sepc_zoo.errors import HubError
from sepc_zoo.factory import load_model
from sepc_zoo.files import write_json
from sepc_zoo.registry import neck_name
from sepc_zoo.terminal import quoted, say

RUN_FOLDERS = ("best", "last")  # model folders whose repository is named after the run
PAGE = """\
---
title: README
sdk: static
pinned: false
---

# Detectors of {org}

Built with sepc_zoo; `sepc_zoo.create_model("hf-hub:{org}/NAME")` loads one. AP is ours, measured \
with `sepc-zoo validate`; the authors' AP is the one that they published.

| model | method | backbone | neck | classes | AP | AP50 | authors' AP |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}
"""


@dataclass(frozen=True)
class Contents:
    """The card and files that are uploaded with a model.

    Attributes:
        metrics: metrics for a new card; None keeps the card that training wrote.
        dataset: name of the data set of these metrics.
        license: licence of the weights for the card, by its id on the hub.
        handler: whether to add ``handler.py``, with which Inference Endpoints run the model.
    """

    metrics: Mapping[str, Any] | None = None
    dataset: str | None = None
    license: str | None = None
    handler: bool = False


def push(folder: Path, repo_id: str, contents: Contents = Contents(), **options: Any) -> str:
    """Upload a model folder after loading it as a check; its card gets the new address.

    Args:
        options: arguments of ``push_folder``.

    Returns:
        The address of the commit.

    Raises:
        HubError: the folder is not a model folder, or the hub refuses.
    """
    with tempfile.TemporaryDirectory() as temporary:
        write_repository(folder, Path(temporary), repo_id, contents)
        return push_folder(temporary, repo_id, **options)


def write_repository(folder: Path, output: Path, repo_id: str, contents: Contents) -> None:
    """Write the files of a model's repository after loading the model as a check."""
    model, metrics = load_model(f"local-dir:{folder}"), contents.metrics
    save_model(model, output, metrics=metrics, dataset=contents.dataset, repo_id=repo_id)
    card, metrics_file = folder / CARD_FILE, folder / METRICS_FILE
    if metrics is not None:
        write_json(output / METRICS_FILE, metrics)
    elif card.is_file():
        text = card.read_text(encoding="utf-8").replace(LOCAL_SOURCE, f"hf-hub:{repo_id}")
        (output / CARD_FILE).write_text(text, encoding="utf-8")
        if metrics_file.is_file():
            shutil.copy(metrics_file, output)
    if contents.license is not None:
        new_card = ModelCard.load(output / CARD_FILE)
        new_card.data.license = contents.license
        new_card.save(output / CARD_FILE)
    if contents.handler:
        write_handler(output)


def push_space(space_id: str, repo_id: str, license: str | None, **options: Any) -> str:
    """Upload a Space that shows a model of the hub; return the address of the commit.

    Args:
        options: arguments of ``push_folder``.

    Raises:
        HubError: the hub refuses.
    """
    with tempfile.TemporaryDirectory() as temporary:
        write_space(Path(temporary), space_id, repo_id, license)
        return push_folder(temporary, space_id, space_sdk="gradio", **options)


def push_or_say_how(folder: Path, repo_id: str) -> str | None:
    """Upload a new model and print its address; on failure, return how to do it later."""
    try:
        say(f"on the hub: {push(folder, repo_id)}")
    except (HubError, OSError) as error:
        later = f"sepc-zoo push {quoted(folder)} {repo_id}"
        return f"not on the hub: {error}\nthe model is kept; push it later: {later}"
    return None


def repository_name(folder: Path) -> str:
    """The name of a model folder on the hub: its own, or for best and last that of the run."""
    folder = folder.resolve()
    return folder.parent.name if folder.name in RUN_FOLDERS else folder.name


def organisation_page(org: str, folders: list[Path]) -> str:
    """The README of an organisation: a table of its models, the highest AP first."""
    rows = []
    for folder in folders:
        config, metrics = read_config(folder), metrics_of(folder) or {}
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
    return PAGE.format(org=org, rows="\n".join(ordered))
