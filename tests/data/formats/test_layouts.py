"""Copies of one data set in every layout give the same targets."""

import operator
from dataclasses import replace

import pytest
import torch
from copies import WRITERS, write_copy

from sepc_zoo.data import read_data
from sepc_zoo.data.dataset import make_target
from sepc_zoo.data.formats.reader import find_data

LAYOUTS = list(WRITERS)
NEEDS_DATASETS = ("parquet", "saved")


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    try:
        import datasets
    except ImportError:
        return
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def needs(layout):
    if layout in NEEDS_DATASETS:
        pytest.importorskip("datasets")


def plain(annotations):
    """Reduce annotations to what every layout holds: no crowds, areas of boxes, sorted by name."""
    records = []
    for record in sorted(annotations.records, key=lambda record: record.path.name):
        keep = record.iscrowd == 0
        fields = {key: getattr(record, key)[keep] for key in ("boxes", "labels", "iscrowd")}
        boxes = fields["boxes"].double()
        area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).float()
        records.append(replace(record, image_id=len(records) + 1, area=area, **fields))
    return replace(annotations, records=tuple(records))


def sorted_classes(annotations):
    """Sort the classes by name, the only order that VOC has."""
    names = annotations.label_names
    order = sorted(range(len(names)), key=names.__getitem__)
    new = torch.tensor([order.index(label) for label in range(len(names))])
    records = tuple(replace(r, labels=new[r.labels]) for r in annotations.records)
    return replace(annotations, records=records, label_names=tuple(sorted(names)))


def assert_same(found, expected):
    assert found.label_names == expected.label_names
    assert len(found.records) == len(expected.records)
    for a, b in zip(found.records, expected.records, strict=True):
        target, wanted = make_target(a), make_target(b)
        assert target.keys() == wanted.keys()
        torch.testing.assert_close(target.pop("area"), wanted.pop("area"), rtol=3e-7, atol=0)
        for key, value in wanted.items():
            same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
            assert same(target[key], value), key
        assert a.path.read_bytes() == b.path.read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_of_the_shapes_gives_the_same_targets(layout, shapes, tmp_path):
    needs(layout)
    data = {"train": sorted_classes(plain(read_data(shapes, "train")))}
    write_copy(data, layout, tmp_path / layout)
    assert_same(read_data(tmp_path / layout, "train"), data["train"])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_of_real_voc_gives_the_same_targets(layout, shared_data, tmp_path):
    needs(layout)
    data = {split: plain(read_data(shared_data / "bccd", split)) for split in ("val", "test")}
    write_copy(data, layout, tmp_path / layout)
    assert [*find_data(tmp_path / layout).splits] == ["test", "val"]
    for split, expected in data.items():
        assert_same(read_data(tmp_path / layout, split), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_of_real_coco_gives_the_same_targets(layout, shared_data, tmp_path):
    needs(layout)
    data = {"val": sorted_classes(plain(read_data(shared_data / "coco_by_sa", "val")))}
    write_copy(data, layout, tmp_path / layout)
    names = data["val"].label_names  # VOC has only the classes that occur
    assert_same(read_data(tmp_path / layout, "val", names), data["val"])
