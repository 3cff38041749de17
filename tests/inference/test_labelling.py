"""Boxes that a model adds to a data set."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from faulty import write_good_data

from sepc_zoo.cli import main
from sepc_zoo.config import override
from sepc_zoo.data import read_data
from sepc_zoo.data.quality.check import check_data
from sepc_zoo.data.quality.fix import clean_listings
from sepc_zoo.factory import create_model
from sepc_zoo.inference.labelling import add_labels

BOX = [1.0, 2.0, 11.0, 8.0]


class Fixed:
    """Finds the same objects in every image."""

    def __init__(self, names, found):
        self.config = create_model("fsaf_mnv4s_fpn", label_names=names, channels=16).config
        self.config = override(self.config, {"weights": {"image_size": (64, 64)}})
        self.found = found

    def detect(self, images):
        boxes, scores, labels = zip(*self.found, strict=True)
        found = {
            "boxes": torch.tensor(boxes),
            "scores": torch.tensor(scores),
            "labels": torch.tensor(labels),
        }
        return [{name: values.clone() for name, values in found.items()} for _ in images]


@pytest.fixture
def listings(tmp_path):
    return clean_listings(check_data(write_good_data(tmp_path / "data")), [])


def labelled(listings, names, found, **kwargs):
    return add_labels(Fixed(names, found), listings, "train", 0.5, Counter(), workers=0, **kwargs)


def test_only_classes_without_boxes_in_the_split_are_added(listings):
    own = listings["train"]
    present = own.label_names[own.images[0].boxes[0].label]
    found = [(BOX, 0.9, 0), (BOX, 0.9, 1), (BOX, 0.4, 1), ([5.0, 5.0, 5.0, 9.0], 0.9, 1)]
    after = labelled(listings, [present, "zebra"], found)
    assert after["train"].label_names == [*own.label_names, "zebra"]
    for image, before in zip(after["train"].images, own.images, strict=True):
        assert image.boxes[: len(before.boxes)] == before.boxes
        (added,) = image.boxes[len(before.boxes) :]
        assert after["train"].label_names[added.label] == "zebra"


def test_other_splits_get_the_classes_and_no_boxes(listings):
    after = labelled(listings, ["zebra"], [(BOX, 0.9, 0)])
    assert after["val"].label_names == after["train"].label_names
    assert [i.boxes for i in after["val"].images] == [i.boxes for i in listings["val"].images]


def test_category_ids_stay_unique(listings):
    after = labelled(listings, ["zebra", "yak"], [(BOX, 0.9, 0)])["train"]
    assert len({*after.category_ids}) == len(after.label_names)
    own = listings["train"]
    assert after.category_ids[: len(own.category_ids)] == list(own.category_ids)


def test_the_command_writes_a_data_set_to_train_on(tmp_path, monkeypatch, capsys):
    data, copy = write_good_data(tmp_path / "data"), tmp_path / "copy"
    model = Fixed(["zebra"], [(BOX, 0.9, 0)])
    model.to = lambda _: model
    monkeypatch.setattr("sepc_zoo.api.models.model_with_weights", lambda _: model)
    arguments = ["--model", "hf-hub:zoo/old", "--output", str(copy), "--workers", "0"]
    assert main(["label", str(data), *arguments]) == 0
    after = read_data(copy, "train")
    assert f"boxes added to train: {len(after.records)} of zebra" in capsys.readouterr().out
    label = after.label_names.index("zebra")
    for record in after.records:
        assert (record.labels == label).sum() == 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"--split": "trian"}, "has the splits"), ({"--output": "{data}/new"}, "inside the data set")],
)
def test_wrong_places_are_refused(changes, text, tmp_path, monkeypatch, capsys):
    data = write_good_data(tmp_path / "data")
    model = SimpleNamespace(to=lambda _: None)
    monkeypatch.setattr("sepc_zoo.api.models.model_with_weights", lambda _: model)
    options = {"--model": "hf-hub:zoo/old", "--output": str(tmp_path / "new")} | changes
    rest = [part.format(data=data) for pair in options.items() for part in pair]
    assert main(["label", str(data), *rest]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_several_processes_are_refused(tmp_path, monkeypatch, capsys):
    several = SimpleNamespace(num_processes=2)
    monkeypatch.setattr("sepc_zoo.training.accelerator.start_processes", lambda _: several)
    arguments = ["--model", "hf-hub:zoo/old", "--output", str(tmp_path / "new")]
    assert main(["label", str(tmp_path), *arguments]) == 2
    assert "label runs in one process" in capsys.readouterr().err
