"""Images per second and core: read, decoded, randomly flipped, resized, batched, normalised.

Ours is compared with torchvision's reference pipeline for detection: `CocoDetection` (PIL),
`transforms.v2` on the PIL image, and `GeneralizedRCNNTransform`, which its models apply to float
images. One process and one thread; both take turns. Times are processor times, which depend least
on other load. Images without boxes are left out, as in the reference.

    python benchmarks/data_path.py --data coco
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from sepc_zoo.config import WeightsConfig
from sepc_zoo.data import Augmentation, DetectionDataset, collate, read_data, train_transform

TABLE = Path(__file__).with_suffix(".csv")
HEADER = "photos,short,long,pipeline,part,images_per_second,least,most,ratio,rounds,torch"
HEADER += ",torchvision,cpu"
SIZES = ((800, 1333), (480, 640), (320, 320))
SPLIT = "train2017"
BATCH = 4
NUM_ENLARGED, SCALE = 16, 4  # images enlarged by this factor, to about 2560 x 1920 pixels
MEAN, STD = WeightsConfig().mean, WeightsConfig().std
Loader = Callable[[list[int]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help=f"COCO folder with {SPLIT}")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [HEADER]
    with tempfile.TemporaryDirectory() as folder:
        enlarge(args.data, Path(folder))
        for photos, data in (("COCO", args.data), ("enlarged", Path(folder))):
            for size in SIZES:
                for row in compare(data, size, args.rounds):
                    facts = torch.__version__, torchvision.__version__, platform.machine()
                    rows.append(",".join(map(str, (photos, *size, *row, args.rounds, *facts))))
                    print(rows[-1], flush=True)
    TABLE.write_text("\n".join(rows) + "\n")


def compare(data: Path, size: tuple[int, int], rounds: int) -> Iterable[tuple[str, ...]]:
    """Yield a row per pipeline and part: images per second and the ratio to torchvision's."""
    pipelines = {"torchvision": reference(data, size), "sepc_zoo": ours(data, size)}
    content = json.loads(annotation_file(data).read_text())
    ids = sorted({one["image_id"] for one in content["annotations"]})
    rates: dict[tuple[str, str], list[float]] = {}
    for i in range(rounds + 1):  # the first reads the files into memory
        order = random.Random(i).sample(ids, len(ids))
        for name, (load, finish) in pipelines.items():
            loading, finishing = measure(load, finish, order)
            if i > 0:
                rates.setdefault((name, "loaded"), []).append(len(ids) / loading)
                rate = len(ids) / (loading + finishing)
                rates.setdefault((name, "ready"), []).append(rate)
    for (name, part), values in rates.items():
        middle = statistics.median(values)
        ratio = middle / statistics.median(rates["torchvision", part])
        yield name, part, *(f"{x:.1f}" for x in (middle, min(values), max(values))), f"{ratio:.2f}"


def measure(load: Loader, finish: Callable[[Any], Any], order: list[int]) -> tuple[float, float]:
    """Processor seconds to load all images, and to turn them into the network's input."""
    seconds = [0.0, 0.0]
    for i in range(0, len(order), BATCH):
        start = time.process_time()
        loaded = load(order[i : i + BATCH])
        middle = time.process_time()
        finish(loaded)
        seconds[0] += middle - start
        seconds[1] += time.process_time() - middle
    return seconds[0], seconds[1]


def reference(data: Path, size: tuple[int, int]) -> tuple[Loader, Callable[[Any], Any]]:
    """torchvision's pipeline: float images are loaded at full size, the model does the rest."""
    transforms = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.SanitizeBoundingBoxes(),  # an image without boxes would fail here
            v2.ToPureTensor(),
        ]
    )
    dataset = CocoDetection(str(data / SPLIT), str(annotation_file(data)), transforms=transforms)
    keys = ["boxes", "labels", "image_id"]
    wrapped: Any = wrap_dataset_for_transforms_v2(dataset, target_keys=keys)
    place = {image_id: i for i, image_id in enumerate(dataset.ids)}
    in_model = GeneralizedRCNNTransform(size[0], size[1], [*MEAN], [*STD])

    def load(ids: list[int]) -> Any:
        return tuple(zip(*(wrapped[place[i]] for i in ids), strict=True))

    return load, lambda loaded: in_model([*loaded[0]], [*loaded[1]])


def ours(data: Path, size: tuple[int, int]) -> tuple[Loader, Callable[[Any], Any]]:
    """Our pipeline: uint8 batches are loaded, and normalised on the network's device."""
    augmentation = Augmentation()
    transform = train_transform(*size, antialias=True, augmentation=augmentation)
    largest = augmentation.largest(*size)
    dataset = DetectionDataset(read_data(data, SPLIT), transform, largest=largest)

    place = {record.image_id: i for i, record in enumerate(dataset.annotations.records)}

    def load(ids: list[int]) -> Any:
        return collate([dataset[place[i]] for i in ids])

    return load, lambda batch: batch.normalized(MEAN, STD)


def enlarge(data: Path, folder: Path) -> None:
    """Write some images as large as a camera takes them."""
    content = json.loads(annotation_file(data).read_text())
    images = content["images"][:NUM_ENLARGED]
    (folder / SPLIT).mkdir()
    for image in images:
        with Image.open(data / SPLIT / image["file_name"]) as photo:
            size = photo.width * SCALE, photo.height * SCALE
            photo.convert("RGB").resize(size).save(folder / SPLIT / image["file_name"], quality=90)
        image["width"], image["height"] = size
    ids = {image["id"] for image in images}
    annotations = [
        {k: v for k, v in one.items() if k != "segmentation"}
        | {"bbox": [SCALE * x for x in one["bbox"]], "area": SCALE**2 * one["area"]}
        for one in content["annotations"]
        if one["image_id"] in ids
    ]
    annotation_file(folder).parent.mkdir()
    text = json.dumps(content | {"images": images, "annotations": annotations})
    annotation_file(folder).write_text(text)


def annotation_file(data: Path) -> Path:
    return data / "annotations" / f"instances_{SPLIT}.json"


if __name__ == "__main__":
    main()
