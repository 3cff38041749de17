"""Reading annotations of the size of COCO's and of LVIS's training split: time and memory.

The files are made up, with polygons; images are hard links to a few. pycocotools' ``COCO()`` and
ours take turns, each in a new process. Ours also checks every image file, which ``COCO()`` does
not. Memory is what reading adds to a process that has imported the package: its peak, and what
stays; of a worker (forked) and of the second process of a machine, what they have for themselves
after they went through all records. Writes ``benchmarks/annotations.csv`` and prints a table.

    python -m benchmarks.annotations [--folder DIR] [--scale 0.01] [--picture FILE]
"""

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

TABLE = Path(__file__).with_suffix(".csv")
SETS = {
    "COCO": (118_287, 860_001, 80),
    "LVIS": (100_170, 1_270_141, 1203),
}  # images, boxes, classes
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (500, 375))
MAX_LINKS = 20_000  # hard links that a file may have
CHUNK = 20_000  # annotations that are made at once
POINTS = 28  # corners of a polygon, at most
CASES = (("pycocotools", 1, 0), ("sepc_zoo", 1, 0), ("sepc_zoo", 1, 1), ("sepc_zoo", 1, 2))
CASES += (("sepc_zoo", 1, 4), ("sepc_zoo", 2, 0))  # reader, processes, workers of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to make the data sets, on one disk")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of images and boxes")
    parser.add_argument("--picture", type=Path, help="draw the statistics of the COCO-like set")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        reader, root, workers = args.child
        print(json.dumps(measure(reader, Path(root), int(workers))))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for name, (images, boxes, classes) in SETS.items():
            root = Path(folder) / name
            make_set(root, int(images * args.scale), int(boxes * args.scale), classes)
            for reader, processes, workers in CASES:
                first, *others = run(reader, root, processes, workers)
                row = {"set": name, "reader": reader, "processes": processes, "workers": workers}
                rows.append(
                    row | first | {"other_mib": max((o["stays_mib"] for o in others), default="")}
                )
                print(rows[-1], flush=True)
            if args.picture and name == "COCO":
                draw(root, args.picture)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def make_set(root: Path, images: int, boxes: int, classes: int) -> None:
    """Make up a data set in the COCO layout; the frequency of classes falls as 1 / rank."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    sizes = np.array(SIZES)[rng.integers(len(SIZES), size=images)]
    ids = np.sort(rng.choice(images * 5, images, replace=False)) + 1
    share = 1 / np.arange(1, classes + 1)
    encode = msgspec.json.encode
    with (root / "annotations/instances_train2017.json").open("wb") as file:
        file.write(b'{"info": {}, "images": [')
        for i, (image_id, (height, width)) in enumerate(
            zip(ids.tolist(), sizes.tolist(), strict=True)
        ):
            name = f"{image_id:012d}.jpg"
            link_image(root, name, (height, width), i // MAX_LINKS)
            url = f"http://images.cocodataset.org/train2017/{name}"
            entry = {"id": image_id, "file_name": name, "height": height, "width": width}
            file.write(b", " * (i > 0) + encode(entry | {"coco_url": url, "flickr_url": url}))
        file.write(b'], "annotations": [')
        for start in range(0, boxes, CHUNK):
            count = min(CHUNK, boxes - start)
            image = np.minimum(rng.random(count) ** 1.3 * images, images - 1).astype(int)
            extent = sizes[image][:, ::-1]
            sides = np.exp(rng.normal(3.9, 1.0, (count, 2))).clip(1, extent - 1)
            corner = np.floor(rng.random((count, 2)) * (extent - sides) * 100) / 100
            points = corner[:, None] + sides[:, None] * rng.random((count, POINTS, 2))
            columns = (
                ids[image],
                rng.choice(classes, count, p=share / share.sum()) + 1,
                np.concatenate([corner, sides.round(2)], axis=1),
                (0.6 * sides.prod(axis=1)).round(4),
                (rng.random(count) < 0.01).astype(int),
                points.round(2).reshape(count, -1),
            )
            keys = ("image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
            for i, row in enumerate(
                zip(*(column.tolist() for column in columns), strict=True), start
            ):
                polygon = row[-1][: 6 + 2 * (i % (POINTS - 2))]
                entry = dict(zip(keys, (*row[:-1], [polygon]), strict=True)) | {"id": i + 1}
                file.write(b", " * (i > 0) + encode(entry))
        names = [{"id": i, "name": f"class {i}"} for i in range(1, classes + 1)]
        file.write(b'], "categories": ' + encode(names) + b"}")


def link_image(root: Path, name: str, size: tuple[int, int], number: int) -> None:
    source = root / f"{size[0]}x{size[1]}_{number}.jpg"
    if not source.exists():
        Image.effect_noise(size[::-1], 60).convert("RGB").save(source)
    os.link(source, root / "train2017" / name)


def run(reader: str, root: Path, processes: int, workers: int) -> list[dict[str, Any]]:
    """Measure in new processes, as a launcher would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "benchmarks.annotations",
        "--child",
        reader,
        root,
        str(workers),
    ]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    world |= {"LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"} if processes > 1 else {}
    started = []
    for rank in range(processes):
        own = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        started.append(subprocess.Popen(command, env=os.environ | own, stdout=subprocess.PIPE))
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]


def measure(reader: str, root: Path, workers: int) -> dict[str, Any]:
    """Read a data set in this process; return seconds and MiB."""
    from functools import partial

    from torch.utils.data import DataLoader

    from sepc_zoo.data import read_data
    from sepc_zoo.data.sharing import read_once
    from sepc_zoo.training.accelerator import start_processes

    if reader == "pycocotools":
        from pycocotools.coco import COCO

        read: Any = partial(COCO, root / "annotations/instances_train2017.json")
    else:
        start_processes(device="cpu")
        read = partial(read_once, partial(read_data, root, "train"))
    before, start, wall = own_memory(), time.process_time(), time.perf_counter()
    peak = peak_memory()
    data = read()
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    result = {
        "cpu_seconds": round(seconds, 1),
        "wall_seconds": round(wall, 1),
        "peak_mib": round(peak_memory() - peak),
        "stays_mib": round(own_memory() - before),
        "worker_mib": "",
    }
    if workers:
        loader = DataLoader(Walk(data.records), num_workers=workers, batch_size=None)
        result["worker_mib"] = round(max(float(used) for used in loader))
    return result


class Walk:
    """A data set of one item for each worker: what going through all records adds to it, MiB."""

    def __init__(self, records: Any) -> None:
        self.records = records

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        before = own_memory()
        boxes = sum(float(record.boxes.sum()) for record in self.records)
        return own_memory() - before + 0 * boxes


def peak_memory() -> float:
    """Most memory that this process has had, MiB; ``getrusage`` knows its parent's too."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM")) / 1024


def own_memory() -> float:
    """Memory that this process shares with no other, MiB."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith("Private_")) / 1024


def draw(root: Path, picture: Path) -> None:
    """Draw what ``check-data`` draws of a data set's boxes."""
    from sepc_zoo.data.formats.coco import coco_splits
    from sepc_zoo.data.listing import ListedImages
    from sepc_zoo.data.quality.statistics import class_counts, describe
    from sepc_zoo.evaluation.plots import plot_statistics

    listing = coco_splits(root)["train2017"]()
    counts = class_counts([describe(listing)])
    plot_statistics({"train": ListedImages.of(listing.images)}, counts, picture)


if __name__ == "__main__":
    main()
