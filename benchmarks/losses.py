"""Losses with gradients, and post-processing: ours compared with the original way (``plain.py``).

Predictions of 8 images at 800x1344 with 100 boxes each and 80 classes, on the CPU in float32. Times
are medians of runs that take turns in one process, ratios those of processor time, which depends
less on other load. Memory of a loss is the peak of a new process minus its inputs.
Writes ``benchmarks/losses.csv`` and prints a table.

    python -m benchmarks.losses [--rounds N] [--threads N] [--boxes N]
"""

import argparse
import csv
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from benchmarks.plain import plain_loss, plain_postprocess
from sepc_zoo.config import DetectorConfig, FPNConfig, PostprocessConfig
from sepc_zoo.methods.losses import mean_terms
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.ops.anchors import make_anchors
from sepc_zoo.ops.boxes import box_iou
from sepc_zoo.ops.coders import decode
from sepc_zoo.ops.nms import select_detections
from sepc_zoo.outputs import Anchors, Predictions
from sepc_zoo.registry import model_config

TABLE = Path(__file__).with_suffix(".csv")
SIZE, CLASSES = (800, 1344), 80
METHODS = ("retinanet", "freeanchor", "fsaf")  # those that plain.py has
STRIDES = FPNConfig().strides
SIZES = tuple((-(-SIZE[0] // stride), -(-SIZE[1] // stride)) for stride in STRIDES)
WAYS = ("plain", "ours")
PARTS = ("loss", "postprocess")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--boxes", type=int, default=100, help="boxes of each image")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)  # run in a new process
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        method, way = args.peak_of
        run = make_runs("loss", method, args)[way]
        before = peak_memory()
        run()
        print(before, peak_memory())
        return
    # First, because a new process inherits the peak of this one.
    peaks = {
        ("loss", method, way): peak_of(method, way, args) for method in args.methods for way in WAYS
    }
    rows = [
        row
        for part in PARTS
        for method in args.methods
        for row in measure(part, method, peaks, args)
    ]
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print_table(rows)


def measure(
    part: str,
    method: str,
    peaks: dict[tuple[str, str, str], Any],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Measure both ways; one row each."""
    runs = make_runs(part, method, args)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    processor: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            start, processor_start = time.perf_counter(), time.process_time()
            runs[way]()
            seconds[way].append(time.perf_counter() - start)
            processor[way].append(time.process_time() - processor_start)
    return [
        {
            "part": part,
            "method": method,
            "way": way,
            "seconds": f"{statistics.median(seconds[way]):.3f}",
            "fastest": f"{min(seconds[way]):.3f}",
            "slowest": f"{max(seconds[way]):.3f}",
            "processor": f"{statistics.median(processor[way]):.3f}",
            "inputs_gib": peaks.get((part, method, way), ("", ""))[0],
            "peak_gib": peaks.get((part, method, way), ("", ""))[1],
            "rounds": args.rounds,
            "batch": args.batch,
            "boxes": args.boxes,
            "size": f"{SIZE[0]}x{SIZE[1]}",
            "threads": args.threads,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "cpu": cpu_name(),
        }
        for way in WAYS
    ]


def make_runs(part: str, method: str, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return the functions to measure, by way."""
    generator = torch.Generator().manual_seed(0)
    config = model_config(f"{method}_r50_fpn")
    boxes = make_anchors(config.anchors, SIZES, STRIDES)
    if part == "loss":
        anchors = Anchors(boxes, [h * w * config.anchors.per_cell for h, w in SIZES])
        predictions = random_predictions(config, len(boxes), args.batch, generator, mean=-4.0)
        predictions.logits.requires_grad_()
        predictions.deltas.requires_grad_()
        targets = [random_target(args.boxes, generator) for _ in range(args.batch)]
        collated = collate_targets(targets, like=predictions.deltas)

        def backward(losses: Callable[[], dict[str, Tensor]]) -> None:
            predictions.logits.grad = predictions.deltas.grad = None
            sum(losses().values(), torch.zeros(())).backward()

        def ours() -> dict[str, Tensor]:
            return mean_terms(config.method.loss(predictions, anchors, collated, config.coder))

        plain = partial(plain_loss, config, predictions, boxes, targets)
        return {"plain": partial(backward, plain), "ours": partial(backward, ours)}
    predictions = random_predictions(config, len(boxes), args.batch, generator, mean=-7.5)
    for logits in predictions.logits:
        raise_scores(logits, boxes, random_target(30, generator), generator)
    sizes = [SIZE] * args.batch
    inputs = predictions, boxes, partial(decode, config.coder), sizes, PostprocessConfig()
    return {
        "plain": lambda: plain_postprocess(*inputs),
        "ours": lambda: select_detections(*inputs),
    }


def random_predictions(
    config: DetectorConfig, anchors: int, batch: int, generator: torch.Generator, mean: float
) -> Predictions:
    logits = torch.randn(batch, anchors, CLASSES, generator=generator).add_(mean)
    deltas = torch.randn(batch, anchors, 4, generator=generator).mul_(0.3)
    if config.head.box_activation == "relu":
        deltas.add_(1).relu_()
    return Predictions(logits, deltas, SIZES)


def random_target(boxes: int, generator: torch.Generator) -> dict[str, Tensor]:
    room = torch.tensor([SIZE[1] - 210.0, SIZE[0] - 210.0])
    corner = torch.rand(boxes, 2, generator=generator) * room
    side = 8 + torch.rand(boxes, 2, generator=generator) * 200
    labels = torch.randint(CLASSES, (boxes,), generator=generator)
    return {"boxes": torch.cat([corner, corner + side], dim=1), "labels": labels}


def raise_scores(
    logits: Tensor, anchors: Tensor, target: dict[str, Tensor], rng: torch.Generator
) -> None:
    """Raise the scores of anchors with their overlap with an object, as training does."""
    for overlap, label in zip(box_iou(target["boxes"], anchors), target["labels"], strict=True):
        near = overlap > 0.4
        noise = torch.randn(int(near.sum()), generator=rng)
        logits[near, label] = 8 * overlap[near] - 4 + noise


def peak_of(method: str, way: str, args: argparse.Namespace) -> tuple[float, float]:
    """Memory of a new process before a loss and at its peak, in GiB."""
    options = {"--threads": args.threads, "--batch": args.batch, "--boxes": args.boxes}
    words = [str(word) for option in options.items() for word in option]
    command = [sys.executable, "-m", "benchmarks.losses", "--peak-of", method, way, *words]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root)
    before, peak = map(float, done.stdout.split())
    return round(before, 2), round(peak, 2)


def peak_memory() -> float:
    """Peak memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| part | method | plain, s | ours, s | ratio | plain, GiB | ours, GiB | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for plain, ours in zip(rows[::2], rows[1::2], strict=True):
        cells = [plain["part"], plain["method"], plain["seconds"], ours["seconds"]]
        cells += [f"{float(plain['processor']) / float(ours['processor']):.1f}"]
        if plain["peak_gib"]:
            much, little = (float(r["peak_gib"]) - float(r["inputs_gib"]) for r in (plain, ours))
            cells += [f"{much:.2f}", f"{little:.2f}", f"{little / much:.2f}"]
        else:
            cells += ["-"] * 3
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
