"""Power cuts: what a run loses when the machine stops, on an ext4 disk of its own.

The disk is a file that is mounted. While a run trains on it, copies of that file are taken at
random moments: they hold what had reached the disk. Each copy is mounted and its run resumed to the
end. Needs the right to mount.

    python benchmarks/power_cut.py [--cuts 10] [--without-sync]
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from sepc_zoo.data import write_shapes
from sepc_zoo.training.callbacks import Callback, DrawSamples, WriteReport
from sepc_zoo.training.config_file import read_options
from sepc_zoo.training.options import TrainOptions
from sepc_zoo.training.trainer import train

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ["sync", "cut", "steps made", "bytes of state.pt", "said", "resumed at", "end"]
SAVE_INTERVAL = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=10, metavar="N")
    parser.add_argument("--without-sync", action="store_true", help="let os.fsync do nothing")
    args = parser.parse_args()
    sync = "no" if args.without_sync else "yes"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_shapes("shapes", train=8, val=4, size=(64, 64))
        whole = run_in_process(lambda: train(options("whole")), False)
        whole.join()
        copies = cut_power(args.cuts, args.without_sync)
        for i, (copy, made) in enumerate(copies, start=1):
            with mounted(copy):
                rows.append([sync, i, made, *resume(Path("disk/run"))])
            print(*rows[-1], sep=" | ", flush=True)
    old = []
    if TABLE.exists():
        with TABLE.open(newline="") as file:
            old = [row for row in csv.reader(file) if row[0] not in (COLUMNS[0], sync)]
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows, *old])


def options(output: str) -> TrainOptions:
    """A run of three epochs with four steps each."""
    return TrainOptions(
        data="shapes",
        output=output,
        model="retinanet_mnv4s_pconv",
        model_kwargs={"channels": 16, "neck": {"blocks": 1}},
        image_size=(64, 64),
        batch_size=2,
        epochs=3,
        workers=0,
        log_interval=1,
        save_interval=SAVE_INTERVAL,
        log_with=(),
        device="cpu",
    )


def run_in_process(function: Any, without_sync: bool) -> Any:
    """Call a function in a process, which is forked so that nothing is imported again."""

    def call() -> None:
        DrawSamples.after_validation = Callback.after_validation  # most of a tiny run's time
        WriteReport.after_training = Callback.after_training
        if without_sync:
            os.fsync = lambda _: None
        function()

    process = get_context("fork").Process(target=call)
    process.start()
    return process


@contextmanager
def mounted(image: Path) -> Iterator[None]:
    Path("disk").mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, "disk"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "disk"], check=True)


def cut_power(cuts: int, without_sync: bool) -> list[tuple[Path, int]]:
    """Train on a disk; copies of it, and the steps that were logged by then."""
    image, copies = Path("image"), []
    with image.open("wb") as file:
        file.truncate(400 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    while len(copies) < cuts:
        with mounted(image):
            shutil.rmtree("disk/run", ignore_errors=True)
            process = run_in_process(lambda: train(options("disk/run")), without_sync)
            while process.is_alive() and len(copies) < cuts:
                time.sleep(random.uniform(0, 2))
                if not Path("disk/run/state.pt").exists() or not process.is_alive():
                    continue
                os.kill(process.pid, signal.SIGSTOP)  # so that the copy is of one moment
                made = Path("disk/run/log.csv").read_text().count("\n") - 1
                copy = Path(f"copy{len(copies)}")
                subprocess.run(["cp", "--sparse=always", image, copy], check=True)
                copies.append((copy, made))
                os.kill(process.pid, signal.SIGCONT)
            process.kill()
            process.join()
    return copies


def resume(run: Path) -> list[Any]:
    """Resume a run after the cut; what was on the disk, and how it ended."""
    state = run / "state.pt"
    size = state.stat().st_size if state.exists() else "none"
    at, log = "", Path("said")

    def go_on() -> None:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        train(read_options(run), resume=True)

    for name in ("state.pt", "state.previous.pt"):
        try:
            at = at or str(torch.load(run / name, weights_only=True)["progress"]["step"])
        except Exception:
            continue
    process = run_in_process(go_on, False)
    process.join()
    said = "took the state before" if "instead" in log.read_text() else ""
    if process.exitcode:
        return [size, log.read_text().strip().splitlines()[-1], at, "not resumed"]
    ours, theirs = (
        torch.load(folder / "state.pt", weights_only=True)["model"]
        for folder in (run, Path("whole"))
    )
    is_same = all(torch.equal(value, theirs[key]) for key, value in ours.items())
    return [size, said, at, "same end" if is_same else "another end"]


if __name__ == "__main__":
    sys.exit(main())
