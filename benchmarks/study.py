"""The study: what a neck gains, by AP over the number of training steps.

Every run is a row of ``study.csv``. Runs that stand there are not repeated, so the study can be
stopped and continued, and ``--part 0/2`` and ``--part 1/2`` share it among two processes: results
do not depend on the load of the machine, times do.

    python -m benchmarks.study --data shapes bccd=DIR coarse=DIR \\
        --backbone-checkpoint mobilenetv2.safetensors
    python -m benchmarks.study --tables  # writes README.md's tables and docs' figure
"""

import argparse
import itertools
import json
import math
import platform
import re
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib.pyplot as plt
import timm
import torch

import sepc_zoo
from benchmarks.peers import CHANNELS, MOBILENET, PEERS, train_peer
from sepc_zoo.data.synthetic import write_shapes
from sepc_zoo.files import write_json
from sepc_zoo.registry import model_config
from sepc_zoo.training.csv_file import CsvFile
from sepc_zoo.training.options import TrainOptions
from sepc_zoo.training.trainer import train

HERE = Path(__file__).parent
TABLE = re.compile(r"(<!-- study (\S+) -->\n).*?(<!-- end of study \2 -->)", re.DOTALL)
KEY = ("label", "data", "model", "steps", "seed")
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
MATCHED_BY_OVERLAP = ("retinanet", "freeanchor", "fasterrcnn")
BACKBONE: dict[str, Any] = {  # options of a run that the weights of MobileNetV2 need
    "backbone_kwargs": MOBILENET,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
BATCH_SIZE = 4
PICTURE = HERE.parent / "docs/images/study.svg"
PANELS = {"shapes": "drawn shapes, 400 images", "bccd": "blood cells, 205 images"}
BUDGETS = (100, 300, 1000, 3000)  # steps of the figure
NECKS = {
    "fpn": "#6b6b6b",
    "pconv": "#56b4e9",
    "ibn_pconv": "#0072b2",
    "sepc_lite": "#e69f00",
    "sepc": "#d55e00",
}
SHAPES_SIZE = (128, 128)
SHAPES_SIDES = (4.0, 85.0)  # pixels: the sizes of the demonstration, over a further octave


@dataclass(frozen=True)
class Setting:
    """The settings that all runs on a data set share."""

    image_size: tuple[int, int]  # short side and longest long side, pixels
    anchor_factor: float = 1.0  # on the size of all anchors that boxes are matched to by overlap
    images: int = 400  # number of drawn training images


DATA = {
    "shapes": Setting(SHAPES_SIZE, anchor_factor=0.5),
    "shapes50": Setting(SHAPES_SIZE, anchor_factor=0.5, images=50),
    "shapes5000": Setting(SHAPES_SIZE, anchor_factor=0.5, images=5000),
    "bccd": Setting((192, 256), anchor_factor=0.5),
    "coarse": Setting((192, 256), anchor_factor=0.5),
}
NUM_COARSE = 10  # classes of "coarse": COCO's supercategories with the most training boxes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", default=["shapes"], help="shapes…, or NAME=DIR")
    parser.add_argument("--methods", nargs="*", default=["retinanet"])
    parser.add_argument("--necks", nargs="*", default=[*NECKS])
    parser.add_argument("--peers", nargs="*", default=[], choices=[*PEERS], help="other libraries")
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 300, 1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone-checkpoint", help="timm's weights of MobileNetV2")
    parser.add_argument("--recipe", default="auto", help="recipe of our models")
    parser.add_argument("--label", default="now", help="name of the state of the code")
    parser.add_argument("--part", default="0/1", help="this process's part of the runs, as 0/2")
    parser.add_argument("--output", type=Path, default=HERE / "study.csv")
    parser.add_argument(
        "--tables", action="store_true", help="only write the tables and the figure"
    )
    args = parser.parse_args()
    if args.tables:
        write_tables(rows := CsvFile(args.output).read())
        draw(rows)
        return
    models = [f"{m}_mnv2_{n}" for m in args.methods for n in args.necks] + args.peers
    part, parts = map(int, args.part.split("/"))
    runs = [*itertools.product(sorted(args.steps), args.seeds, args.data, models)]
    with tempfile.TemporaryDirectory() as folder:
        for steps, seed, data, model in runs[part::parts]:
            name, _, path = data.partition("=")
            key = dict(zip(KEY, (args.label, name, model, steps, seed), strict=True))
            done = [{entry: row[entry] for entry in KEY} for row in CsvFile(args.output).read()]
            if {entry: str(value) for entry, value in key.items()} not in done:
                path = path or str(shapes(Path(folder) / name, DATA[name].images))
                if name == "coarse":
                    path = str(coarse_classes(Path(folder) / name, Path(path)))
                options = {"backbone_checkpoint": args.backbone_checkpoint, "recipe": args.recipe}
                figures = run(key, path, Path(folder) / "run", options)
                CsvFile(args.output).append(key | figures | versions())
                print(key, figures, flush=True)


def shapes(folder: Path, images: int = Setting.images) -> Path:
    """Draw the shapes once; their sizes cover more than four octaves."""
    if not folder.exists():
        write_shapes(folder, train=images, val=150, size=SHAPES_SIZE, sides=SHAPES_SIDES)
    return folder


def coarse_classes(folder: Path, coco: Path) -> Path:
    """Write a folder of COCO 2017 again, once, with supercategories for classes."""
    if folder.exists():
        return folder
    boxes: Counter[str] = Counter()
    for split in ("train", "val"):
        content = json.loads((coco / f"annotations/instances_{split}2017.json").read_text())
        group = {entry["id"]: entry["supercategory"] for entry in content["categories"]}
        boxes = boxes or Counter(group[box["category_id"]] for box in content["annotations"])
        ids = {name: i for i, (name, _) in enumerate(boxes.most_common(NUM_COARSE), start=1)}
        content["annotations"] = [
            box | {"category_id": ids[group[box["category_id"]]]}
            for box in content["annotations"]
            if group[box["category_id"]] in ids
        ]
        content["categories"] = [{"id": i, "name": name} for name, i in ids.items()]
        write_json(folder / f"annotations/instances_{split}.json", content)
        (folder / split).symlink_to((coco / f"{split}2017").resolve())
    return folder


def run(key: dict[str, Any], data: str, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Train and validate once, with the backbone frozen and all else as by default."""
    setting, start = DATA[key["data"]], time.process_time()
    if key["model"] in PEERS:
        metrics = train_peer(
            key["model"],
            data,
            setting.image_size,
            4 * setting.anchor_factor,
            options["backbone_checkpoint"],
            key["steps"],
            key["seed"],
            BATCH_SIZE,
        )
    else:
        metrics = train(train_options(key, data, setting, output, options))
    seconds = round(time.process_time() - start)
    return {name: round(metrics[name], 4) for name in FIGURES} | {"cpu_seconds": seconds}


def train_options(
    key: dict[str, Any], data: str, setting: Setting, output: Path, options: dict[str, Any]
) -> TrainOptions:
    kwargs: dict[str, Any] = {"channels": CHANNELS}
    if key["model"].startswith(MATCHED_BY_OVERLAP):
        usual = model_config(key["model"]).anchors.base_scale
        kwargs["anchors"] = {"base_scale": usual * setting.anchor_factor}
    return TrainOptions(
        data=data,
        model=key["model"],
        output=f"{output}-{'-'.join(map(str, key.values()))}",
        max_steps=key["steps"],
        seed=key["seed"],
        val_interval=10**6,  # only at the end
        batch_size=BATCH_SIZE,
        image_size=setting.image_size,
        model_kwargs=kwargs,
        freeze_stages=4,
        workers=0,
        device="cpu",
        log_with=(),
        **BACKBONE,
        **options,
    )


def versions() -> dict[str, str]:
    return {
        "sepc_zoo": sepc_zoo.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def write_tables(rows: list[dict[str, str]]) -> None:
    """Write each table between its two marks in README.md."""
    readme = HERE / "README.md"
    text = readme.read_text()
    readme.write_text(TABLE.sub(lambda found: found[1] + table(rows, found[2]) + found[3], text))


def draw(rows: list[dict[str, str]]) -> None:
    """Draw AP of RetinaNet over the steps, with each neck: a range over seeds, a line of means."""
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 9}):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for panel, (data, title) in zip(axes, PANELS.items(), strict=True):
            ap = collect_ap(rows, "now", data)
            for neck, color in NECKS.items():
                model = f"retinanet_mnv2_{neck}"
                steps = [n for n in BUDGETS if (model, n) in ap]
                seeds = [[*ap[model, n].values()] for n in steps]
                panel.plot(steps, [*map(mean, seeds)], "o-", ms=3, color=color, label=neck)
                low, high = ([*map(end, seeds)] for end in (min, max))
                panel.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
            panel.set(title=title, xlabel="training steps", ylabel="AP", ylim=(0, None))
            panel.set_xscale("log", subs=[])
            panel.set_xticks(BUDGETS, [f"{n:,}" for n in BUDGETS])
            panel.spines[["top", "right"]].set_visible(False)
        axes[0].legend(frameon=False)
        figure.savefig(PICTURE, metadata={"Date": None})


def table(rows: list[dict[str, str]], name: str) -> str:
    """AP in percent over the steps: mean and standard error over seeds, difference to the FPN.

    Args:
        name: label, data, numbers of steps and perhaps a method, as ``now/bccd/170,1000/atss``.
    """
    label, data, counts, *method = name.split("/")
    steps = [*map(int, counts.split(","))]
    ap = collect_ap(rows, label, data)
    found = {model for model, n in ap if n in steps and model.startswith(tuple(method) or "")}
    models = sorted(found, key=place)
    lines = [["model", *(f"{count} steps" for count in steps)], ["---"] * (len(steps) + 1)]
    for model in models:
        baseline = re.sub(r"_mnv2_.*", "_mnv2_fpn", model)
        cells = (cell(ap.get((model, n), {}), ap.get((baseline, n), {})) for n in steps)
        lines.append([f"`{model}`", *cells])
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def collect_ap(
    rows: list[dict[str, str]], label: str, data: str
) -> dict[tuple[str, int], dict[str, float]]:
    """AP in percent by seed, for each model and number of steps."""
    ap: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if (row["label"], row["data"]) == (label, data):
            ap[row["model"], int(row["steps"])][row["seed"]] = 100 * float(row["AP"])
    return ap


def place(model: str) -> tuple[bool, str, int]:
    """Key to sort models: ours before those of others, then by method and neck."""
    method, _, neck = model.partition("_mnv2_")
    return ":" in model, method, [*NECKS, ""].index(neck)


def cell(ours: dict[str, float], baseline: dict[str, float]) -> str:
    """Mean and standard error, and those of the paired differences: ``21.3 ± .2 (+1.4 ± .3)``."""
    if not ours:
        return ""
    pairs = [ours[seed] - baseline[seed] for seed in ours if seed in baseline]
    difference = f" ({spread(pairs, sign='+')})" if pairs and ours is not baseline else ""
    return spread([*ours.values()]) + difference


def spread(values: list[float], sign: str = "") -> str:
    error = f" ± {stdev(values) / math.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.1f}{error}"


if __name__ == "__main__":
    main()
