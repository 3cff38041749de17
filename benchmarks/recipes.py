"""Reckon cost and memory of the recipes, and write the table of recipes/README.md.

python benchmarks/recipes.py
"""

import re
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from sepc_zoo.factory import build, count_operations
from sepc_zoo.files import write_atomically
from sepc_zoo.registry import model_config

README = Path(__file__).parents[1] / "recipes" / "README.md"
TABLE = re.compile(r"(<!-- table -->\n).*(<!-- end of table -->)", re.DOTALL)
NUM_IMAGES = 118_287  # of COCO train2017
EPOCHS = {"1x": 12, "3x": 36}
# Mean factor on the pixels of an image: the sides of 3x are drawn from 0.6 to 1.
AREA = {"1x": 1.0, "3x": (1.0 - 0.6**3) / 3 / 0.4}
METHODS, BACKBONES = ("retinanet", "atss", "gfl"), ("r50", "convnext_tiny", "swin_tiny")
# AP on COCO val2017 as published: of these weights, or of the nearest that somebody has trained.
AP = {
    "retinanet_r50_sepc 1x": "39.6 (SEPC authors, `retinanet_r50_sepc.coco_1x`)",
    "atss_r50_sepc 1x": "42.1 (UniverseNet, `atss_r50_sepc.universenet_1x`, without batch norm)",
    "gfl_r50_sepc 1x": "not known; with an FPN 40.2 (openmmlab, `gfl_r50_fpn.mmdet_1x`)",
    "retinanet_r50_sepc 3x": "not known; with an FPN 39.5 (openmmlab, sides of 640 to 800)",
    "gfl_r50_sepc 3x": "not known; with an FPN in 2x 42.9 (openmmlab, `gfl_r50_fpn.mmdet_ms_2x`)",
}


def main() -> None:
    rows = ["| model | recipe | GMACs | cost, 10^18 MACs | GiB an image | AP to expect |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for backbone in BACKBONES:
        for method in METHODS:
            name = f"{method}_{backbone}_sepc"
            _, gmacs, size = count_operations(model_config(name))
            memory = saved_bytes(name, size) / 2**30
            for recipe, epochs in EPOCHS.items():
                cost = gmacs * 1e9 * NUM_IMAGES * 3 * epochs * AREA[recipe] / 1e18
                ap = AP.get(f"{name} {recipe}", "not known")
                file = f"`{backbone}_{recipe}.yaml`"
                cells = (f"`{name}`", file, f"{gmacs:.0f}", f"{cost:.1f}", f"{memory:.1f}", ap)
                rows.append(f"| {' | '.join(cells)} |")
    table = "\n".join(rows)
    text = TABLE.sub(lambda found: f"{found[1]}{table}\n{found[2]}", README.read_text())
    write_atomically(README, lambda file: file.write_text(text))


def saved_bytes(name: str, size: tuple[int, int]) -> int:
    """Bytes that the forward pass of one image keeps for the gradient, float32."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        return tensor  # keeps the storage alive, and its address its own

    with torch.device("meta"):
        model = build(model_config(name)).train()
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = model(torch.empty(1, 3, *size))
        parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    assert outputs is not None
    return sum(count for storage, count in sizes.items() if storage not in parameters)


if __name__ == "__main__":
    main()
