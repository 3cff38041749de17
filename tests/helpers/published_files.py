"""Tiny rows and files of every publisher: real ones with another backbone and few channels.

As a program it loads a model like a user: ``published_files.py ADDRESS_OF_PUBLISHER NAME COUNT``
prints the digests of what COUNT processes that start together get.
"""

import hashlib
import io
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
from authors_checkpoints import META, their_name
from imported_models import digest

from sepc_zoo import create_model
from sepc_zoo.config import merge_entries
from sepc_zoo.models.build import build
from sepc_zoo.published import PUBLISHED, Published
from sepc_zoo.registry import model_config

REAL = {
    "sepc": "freeanchor_r50_sepc.coco_1x",
    "openmmlab": "atss_r50_fpn.mmdet_1x",
    "universenet": "atss_r50_sepc.universenet_1x",
    "torchvision": "retinanet_r50_fpn.tv_coco",
}


def tiny_row(publisher: str, address: str) -> Published:
    """A row whose file lies at this address; those on Google Drive come from a mirror there."""
    row = PUBLISHED[REAL[publisher]]
    name = row.name.replace("_r50_", "_test_efficientnet_")
    url = row.url if publisher == "sepc" else f"{address}/{name}-00000000.pth"
    conventions = merge_entries(row.conventions, {"channels": 8})
    row = row._replace(name=name, url=url, conventions=conventions, sha256="")
    PUBLISHED[name] = row
    if publisher != "sepc":
        row = row._replace(sha256=hashlib.sha256(content(row)).hexdigest()[:8])
    PUBLISHED[name] = row
    return row


def state(row: Published) -> dict[str, torch.Tensor]:
    """Repeatable weights under names that the converter of the publisher knows."""
    generator = torch.Generator().manual_seed(0)
    tensors = build(model_config(row.name)).state_dict()
    for key, value in tensors.items():
        if value.is_floating_point():
            tensors[key] = torch.rand(value.shape, generator=generator)
    if row.publisher == "sepc":
        return {their_name(key): value for key, value in tensors.items()}
    if row.publisher == "torchvision":
        return dict(tensors)
    # The converter leaves our names as they are, but those of the backbone.
    return {key.replace("backbone.body.", "backbone."): v for key, v in tensors.items()}


def content(row: Published) -> bytes:
    """The published file: the same bytes in every process."""
    file = io.BytesIO()
    tensors = state(row)
    wrapped = {"meta": META, "state_dict": tensors}
    torch.save(tensors if row.publisher == "torchvision" else wrapped, file)
    return file.getvalue()


def load(name: str, start: Any, results: Any) -> None:
    start.wait()
    results.put(digest(create_model(name, pretrained=True)))


def main(address: str, publisher: str, count: int) -> None:
    torch.set_num_threads(1)
    name = tiny_row(publisher, address).name
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(count), context.Queue()
    processes = [
        context.Process(target=load, args=(name, start, results), daemon=True) for _ in range(count)
    ]
    for process in processes:
        process.start()
    print(*(results.get(timeout=100) for _ in processes))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
