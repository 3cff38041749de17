"""Fault tolerance: what happens to a training run when something goes wrong.

Each fault is triggered for real, in a new process that trains on a small data set, and the run is
resumed after it. Full disks need the right to mount one; without it their rows are left out.

    python benchmarks/faults.py [--only WORD]
"""

import argparse
import csv
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sepc_zoo.cli import main as sepc_zoo
from sepc_zoo.data import dataset, write_shapes
from sepc_zoo.training import checkpoint
from sepc_zoo.training import trainer as engine

TABLE = Path(__file__).with_suffix(".csv")
RUN, DISK, COUNT = Path("run"), Path("disk"), Path("steps")  # in the working folder
FLAGS = [  # three epochs of four steps
    *("--data", "shapes", "--image-size", "64", "64", "--batch-size", "2", "--workers", "0"),
    *("--model", "retinanet_mnv4s_pconv", "--model-kwargs", "channels=16", "neck.blocks=1"),
    *("--epochs", "3", "--save-interval", "5", "--log-interval", "1", "--model-ema"),
    *("--device", "cpu"),
]
HOW_TO_GO_ON = ("--resume run", "--resume disk/run", "start the run again")
COLUMNS = ["fault", "exit status", "said", "lost", "then"]
PROGRESS = re.compile(r"(train|validate):\s+\d+%|\x1b\[A")


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Args:
        act: triggers the fault in the training process.
        before: function of the trainer; ``act`` runs before it, with its arguments.
        calls: the calls of that function with the fault, counted from 1.
        damage: changes the files of the run before it is resumed.
        shared_memory: size of ``/dev/shm``, as in a container; "" leaves it as it is.
    """

    what: str
    act: Callable[..., Any]
    before: str = "train_step"
    calls: tuple[int, ...] = (7,)
    flags: tuple[str, ...] = ()
    output: Path = RUN
    processes: int = 1
    damage: Callable[[Path], Any] | None = None
    shared_memory: str = ""  # size of /dev/shm


def send(number: int) -> Callable[..., None]:
    return lambda *_: os.kill(os.getpid(), number)


def to_first(number: int) -> Callable[..., None]:
    return lambda *_: os.kill(os.getpid(), number) if os.environ["RANK"] == "0" else None


def crash(*_: Any) -> None:
    raise MemoryError("nothing left")


def kill_while_writing(*_: Any) -> None:
    def write_half(_: Any, file: Path) -> None:
        file.write_bytes(b"PK half of it")
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.write_state = write_half


def kill_a_worker(*_: Any) -> None:
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


def spoil_image(_: Any, batches: Any) -> None:
    batches[0].images[0, 0, 0, 0] = math.nan


def spoil_gradient(run: Any, _: Any) -> None:
    def once(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient * math.inf

    handle = next(run.detector.head.parameters()).register_hook(once)


def an_image(split: str = "train") -> Path:
    return sorted(Path("shapes", split).iterdir())[0]


def wait_for_images(*_: Any) -> None:
    """Let the next image never come, as on a network disk that hangs, and send SIGTERM."""
    dataset.read_image = lambda *_: time.sleep(3600)
    threading.Timer(1, send(signal.SIGTERM)).start()


def fill_disk(*_: Any) -> None:
    with (DISK / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(2**16)):
                pass
        except OSError:
            pass


def add_image(_: Path) -> None:
    file = Path("shapes/annotations/instances_train.json")
    content = json.loads(file.read_text())
    content["images"].append(content["images"][0] | {"id": 99})
    file.write_text(json.dumps(content))


def swap_classes(_: Path) -> None:
    for split in ("train", "val"):
        file = Path(f"shapes/annotations/instances_{split}.json")
        content = json.loads(file.read_text())
        first, second, *_others = content["categories"]
        first["name"], second["name"] = second["name"], first["name"]
        file.write_text(json.dumps(content))


def blank(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def add_zeros(run: Path) -> None:
    with (run / "log.csv").open("ab") as file:
        file.write(bytes(4000))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("this code was run",)


TERM = send(signal.SIGTERM)
FAULTS = [
    Fault("SIGTERM", TERM),
    Fault("SIGINT", send(signal.SIGINT)),
    Fault("SIGHUP", send(signal.SIGHUP)),
    Fault("SIGTERM in a validation", TERM, "validate_model", (2,)),
    Fault("SIGTERM while an image never comes", wait_for_images),
    Fault("SIGKILL in a step", send(signal.SIGKILL)),
    Fault("SIGKILL while the state is written", kill_while_writing, "save_state", (4,)),
    Fault("SIGKILL while a model is saved", send(signal.SIGKILL), "save_model", (3,)),
    Fault("exception in a step", crash),
    Fault("SIGTERM to one of two processes", to_first(signal.SIGTERM), calls=(4,), processes=2),
    Fault("SIGKILL of one of two processes", to_first(signal.SIGKILL), calls=(4,), processes=2),
    Fault("loss NaN", spoil_image),
    Fault("gradient infinite, loss finite", spoil_gradient),
    Fault("loss NaN ten times in a row", spoil_image, calls=tuple(range(2, 12))),
    Fault("an image deleted", lambda *_: an_image().unlink()),
    Fault("an image cut off", lambda *_: truncate(an_image())),
    Fault("an image to validate on deleted", lambda *_: an_image("val").unlink()),
    Fault(
        "data set deleted",
        lambda *_: Path("shapes").rename("away"),
        calls=(5,),
        flags=("--max-faults", "3"),
    ),
    Fault("a worker killed", kill_a_worker, flags=("--workers", "2")),
    Fault(
        "a worker killed, none allowed",
        kill_a_worker,
        flags=("--workers", "2", "--max-faults", "0"),
    ),
    Fault("disk full at the start", fill_disk, "locked", (1,), output=DISK / "run"),
    Fault("disk full, state", fill_disk, "save_state", (4,), output=DISK / "run"),
    Fault("disk full, model folder", fill_disk, "save_model", (3,), output=DISK / "run"),
    Fault(
        "disk full, log",  # when its rows need another page of the disk
        fill_disk,
        flags=("--epochs", "12", "--val-interval", "12", "--save-interval", "12"),
        calls=(13,),
        output=DISK / "run",
    ),
    Fault("output below a file", TERM, calls=(), output=Path("shapes/file/run")),
    Fault("output is a folder of other files", TERM, calls=(), output=Path("shapes")),
    Fault(
        "/dev/shm of 512 KiB",
        TERM,
        calls=(),
        flags=("--workers", "2", "--image-size", "256", "256"),
        shared_memory="512k",
    ),
    Fault("state cut off", TERM, damage=lambda run: truncate(run / "state.pt")),
    Fault("state of zero bytes alone", TERM, damage=lambda run: blank(run / "state.pt")),
    Fault(
        "both states cut off",
        TERM,
        damage=lambda run: [truncate(file) for file in run.glob("state*.pt")],
    ),
    Fault("log with zero bytes at its end", TERM, damage=add_zeros),
    Fault("two classes swapped in the data", TERM, damage=swap_classes),
    Fault(
        "code in the state",
        TERM,
        damage=lambda run: torch.save({"model": Code()}, run / "state.pt"),
    ),
    Fault("model.json missing", TERM, damage=lambda run: (run / "model.json").unlink()),
    Fault("another image in the data", TERM, damage=add_image),
    Fault(
        "saved by another number of processes",
        TERM,
        damage=lambda run: torch.save(state_of(run) | {"random": [{}, {}]}, run / "state.pt"),
    ),
]
NOTHING = Fault("nothing", TERM, calls=())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="WORD", help="only faults with this word in their names"
    )
    parser.add_argument("--provoke", help="train with this fault; further flags are those of train")
    args, flags = parser.parse_known_args()
    if args.provoke is not None:
        sys.exit(train_with_fault(args.provoke, flags))
    chosen = [fault for fault in FAULTS if args.only in fault.what]
    ends: dict[Any, dict[str, Any]] = {}
    rows = read_table()
    for fault in chosen:
        kind = (fault.processes, fault.flags)
        if kind not in ends:
            ends[kind] = undisturbed(*kind)
        rows[fault.what] = describe(fault, ends[kind]) or rows.get(fault.what, [])
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows[fault.what] for fault in FAULTS if rows.get(fault.what))


def read_table() -> dict[str, list[Any]]:
    """Read the rows measured before, by fault."""
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        return {row[0]: row for row in csv.reader(file)}


def train_with_fault(what: str, flags: list[str]) -> int:
    """Train, and trigger the fault on the way."""
    fault = next((fault for fault in FAULTS if fault.what == what), NOTHING)
    train_step = engine.train_step

    def counted(run: Any, batches: Any) -> None:
        train_step(run, batches)
        COUNT.write_text(str(run.progress.step))

    engine.train_step = counted
    function, calls = getattr(engine, fault.before), itertools.count(1)

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        if next(calls) in fault.calls:
            fault.act(*args)
        return function(*args, **kwargs)

    setattr(engine, fault.before, disturbed)
    return sepc_zoo(["train", *flags])


def undisturbed(processes: int, flags: tuple[str, ...]) -> dict[str, Any]:
    """Return the final state of a run without a fault."""
    with working_folder(NOTHING):
        status, message = train(replace(NOTHING, processes=processes, flags=flags))
        if status:
            raise SystemExit(message)
        return state_of(RUN)


def describe(fault: Fault, end: dict[str, Any]) -> list[Any] | None:
    """Measure a row of the table; None where a disk is needed and none can be mounted."""
    with working_folder(fault) as is_ready:
        if not is_ready:
            return None
        run = fault.output
        status, message = train(fault)
        lost = lost_steps(run)
        repair()
        then = "went on"
        if fault.damage:
            fault.damage(run)
            status, message = train(fault, "--resume", str(run))
            then = "refused" if status else "resumed"
        elif status:
            is_saved = (run / "state.pt").is_file()
            how = ["--resume", str(run)] if is_saved else []
            again, _ = train(replace(fault, calls=()), *how)
            then = f"{'resumed' if is_saved else 'started again'}: exit status {again}"
        if (run / "state.pt").is_file() and then not in ("refused", "went on: refused"):
            then += ", same end" if is_same(state_of(run), end) else ", another end"
        row = [fault.what, status, message, lost, then]
        print(*row, sep=" | ", flush=True)
        return row


@contextmanager
def working_folder(fault: Fault) -> Iterator[bool]:
    """Change to a new folder with a data set, and with a small disk where the fault needs one."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_shapes("shapes", train=8, val=4, size=(64, 64))
        Path("shapes", "file").touch()
        needs_disk = fault.output.is_relative_to(DISK)
        DISK.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(DISK)]
        is_ready = not needs_disk or subprocess.run(mount, check=False).returncode == 0
        try:
            yield is_ready
        finally:
            if needs_disk and is_ready:
                subprocess.run(["umount", str(DISK)], check=True)
            os.chdir(before)


def train(fault: Fault, *resume: str) -> tuple[int, str]:
    """Train in a new process; return its exit status and its message."""
    flags = resume or (*FLAGS, *fault.flags, "--output", str(fault.output))
    python = [sys.executable]
    if fault.processes > 1:
        count = ["--nproc_per_node", str(fault.processes)]
        python += ["-m", "torch.distributed.run", "--standalone", *count]
    what = fault.what if fault.calls and not resume else NOTHING.what
    small = f'mount -t tmpfs -o size={fault.shared_memory} tmpfs /dev/shm && exec "$@"'
    python = (["unshare", "-m", "sh", "-c", small, "-"] if fault.shared_memory else []) + python
    command = [*python, str(Path(__file__).resolve()), "--provoke", what, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, find_message(done.stdout, done.stderr)


def find_message(output: str, errors: str) -> str:
    """Find what a program printed about the fault, or last."""
    survived = re.search(r"^survived +(.*\S)", output, re.MULTILINE)
    if survived:
        return f"survived {survived[1]}"
    lines = [line.strip() for line in re.split(r"[\r\n]+", errors)]
    words = [line for line in lines if line.strip("=") and not PROGRESS.search(line)]
    first = next((i for i, w in enumerate(words) if w.startswith("sepc-zoo train: ")), None)
    how = next((i for i, w in enumerate(words) if w.endswith(HOW_TO_GO_ON)), None)
    if first is None and how is None:
        return words[-1] if words else "nothing"
    first = how if first is None else first
    return " / ".join(words[first : 1 + (first if how is None else how)])


def lost_steps(run: Path) -> str:
    """Count the steps that were not saved or were skipped."""
    done = int(COUNT.read_text()) if COUNT.exists() else 0
    is_saved = (run / "state.pt").is_file()
    unsaved = done - (state_of(run)["progress"]["step"] if is_saved else 0)
    faults = run / "faults.csv"
    skipped = faults.read_text().count("skipped step") if faults.is_file() else 0
    lost = {"step": unsaved, "skipped step": skipped}
    return ", ".join(f"{n} {w}{'s' * (n > 1)}" for w, n in lost.items() if n) or "nothing"


def repair() -> None:
    """Free the disk, and restore the data set."""
    (DISK / "filler").unlink(missing_ok=True)
    if Path("away").exists():
        Path("away").rename("shapes")


def state_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "state.pt", weights_only=True)


def is_same(state: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether weights, their moving average and the optimizer are equal bit for bit."""
    parts = ("model", "MovingAverage", "optimizer")
    try:
        for name in parts:
            torch.testing.assert_close(state[name], other[name], rtol=0, atol=0)
    except AssertionError:
        return False
    return True


if __name__ == "__main__":
    main()
