"""Peak memory and time of the losses with many boxes, on the CPU.

Predictions of 2 images at 800x1344 with 500 boxes each; a process of its own for each method, so
that the peak is that method's.

    python benchmarks/matching_memory.py
"""

import argparse
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from sepc_zoo import create_model
from sepc_zoo.methods import METHODS
from sepc_zoo.predictions import Predictions

TABLE = Path(__file__).with_suffix(".csv")
SIZE = (800, 1344)
BATCH, BOXES = 2, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, help="measure this one and print a row")
    args = parser.parse_args()
    if args.method:
        print(measure(args.method))
        return
    header = "method,boxes,batch,size,inputs_gib,peak_gib,seconds,torch,cpu"
    rows = [run_alone(method) for method in METHODS]
    TABLE.write_text("\n".join([header, *rows]) + "\n")
    print(TABLE.read_text())


def run_alone(method: str) -> str:
    command = [sys.executable, __file__, "--method", method]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def measure(method: str) -> str:
    """A row: memory before the loss, at its peak with the gradient, and the time of both."""
    model = create_model(f"{method}_r18_fpn")
    predictions = random_predictions(model.config.anchors.per_cell)
    targets = [random_target() for _ in range(BATCH)]
    before = memory()
    start = time.perf_counter()
    sum(model.loss(predictions, targets).values()).backward()
    seconds = time.perf_counter() - start
    cells = (method, BOXES, BATCH, f"{SIZE[0]}x{SIZE[1]}", f"{before:.2f}", f"{memory():.2f}")
    return ",".join(map(str, (*cells, f"{seconds:.1f}", torch.__version__, platform.machine())))


def random_predictions(per_cell: int) -> Predictions:
    sizes = tuple((-(-SIZE[0] // s), -(-SIZE[1] // s)) for s in (8, 16, 32, 64, 128))
    anchors = per_cell * sum(height * width for height, width in sizes)
    logits = (torch.randn(BATCH, anchors, 80) - 4).requires_grad_()
    deltas = torch.randn(BATCH, anchors, 4).mul_(0.3).abs_().requires_grad_()
    return Predictions(logits, deltas, sizes)


def random_target() -> dict[str, torch.Tensor]:
    corner = torch.rand(BOXES, 2) * torch.tensor([SIZE[1] - 220.0, SIZE[0] - 220.0])
    side = 8 + torch.rand(BOXES, 2) * 200
    return {"boxes": torch.cat([corner, corner + side], 1), "labels": torch.randint(80, (BOXES,))}


def memory() -> float:
    """Most memory that the process has held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
