"""Boxes that a model adds to a data set."""

from collections import Counter
from collections.abc import Mapping, Sequence

from sepc_zoo.data.listing import ListedBox, Listing, unique_ids
from sepc_zoo.inference.detections import DetectionDict
from sepc_zoo.inference.loader import ImageFiles, detect_files, image_loader
from sepc_zoo.inference.predictor import ImageDetector, eval_mode
from sepc_zoo.inference.progress import progress_bar

MIN_AREA = 1.0  # pixels of an added box


def add_labels(
    model: ImageDetector,
    listings: Mapping[str, Listing],
    split: str,
    score_threshold: float,
    added: Counter[str],
    batch_size: int = 4,
    workers: int = 2,
) -> dict[str, Listing]:
    """Add a model's detections of classes that have no box in a split to this split.

    All splits get the model's classes, after their own.

    Args:
        listings: splits of the same classes, whose images can be read.
        split: the split to label.
        score_threshold: lowest score of a detection that becomes a box.
        added: counts the new boxes of each class.
    """
    config, own = model.config, listings[split]
    theirs = dict(zip(config.label_names, config.category_ids, strict=True))
    known = dict(zip(own.label_names, own.category_ids, strict=True))
    ids = unique_ids({**known, **theirs, **known})  # the ids of the data set stay
    names = [*ids]
    present = {box.label for image in own.images for box in image.boxes}
    labels = [names.index(name) for name in config.label_names]
    new_label = {i: label for i, label in enumerate(labels) if label not in present}
    images = list(own.images)
    loader = image_loader(ImageFiles([i.path for i in images], config), batch_size, workers)
    with eval_mode(model):
        for batch in progress_bar(loader, "label", unit="batch"):
            for file, found in detect_files(model, batch):
                image = images[file.position]
                if found is not None:
                    new = new_boxes(found, score_threshold, new_label, names)
                    added.update(box.category for box in new)
                    images[file.position] = image._replace(boxes=[*image.boxes, *new])
    labelled = {**listings, split: own._replace(images=images)}
    return {
        name: listing._replace(label_names=names, category_ids=[*ids.values()])
        for name, listing in labelled.items()
    }


def new_boxes(
    found: DetectionDict,
    score_threshold: float,
    new_label: Mapping[int, int],
    names: Sequence[str],
) -> list[ListedBox]:
    """Build the boxes that a model adds; ``new_label`` maps its labels to those of the data set."""
    boxes = []
    rows = zip(*(found[name].tolist() for name in ("boxes", "scores", "labels")), strict=True)
    for (x1, y1, x2, y2), score, label in rows:
        area = (x2 - x1) * (y2 - y1)
        if score >= score_threshold and label in new_label and area >= MIN_AREA:
            where, new = f"detection with score {score:.2f}", new_label[label]
            boxes.append(ListedBox(where, (x1, y1, x2, y2), new, names[new], 0, area))
    return boxes
