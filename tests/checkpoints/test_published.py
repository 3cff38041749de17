"""The table of published weights."""

import json
import re
from itertools import groupby

import pytest
import torch

from sepc_zoo.checkpoints.convert import openmmlab, torchvision
from sepc_zoo.checkpoints.folder import BoundedBuilding, misfits
from sepc_zoo.models.build import build
from sepc_zoo.published import PUBLISHED, PUBLISHERS, publisher_of
from sepc_zoo.registry import model_config

SOME = list(PUBLISHED)[::8]
TAG = re.compile(
    r"coco_1x|mmdet_(caffe_)?(tricks_|amp_|1xb8_)?(ms_)?[123]x|tv_coco(_v2)?"
    r"|universenet_(1x|2008s(_mini|_micro)?)"
)


def test_tags_say_publisher_and_recipe():
    assert [row.name for row in PUBLISHED.values() if not TAG.fullmatch(row.tag)] == []
    assert {row.publisher for row in PUBLISHED.values()} == set(PUBLISHERS)


def test_addresses_are_different_and_have_a_hash_but_on_google_drive():
    urls = [row.url for row in PUBLISHED.values()]
    assert len(set(urls)) == len(urls)
    without = {row.publisher for row in PUBLISHED.values() if not row.sha256}
    assert without == {"sepc"}


def test_the_best_weights_of_a_publisher_are_its_first_of_a_name():
    def key(row):
        return (row.architecture, row.publisher)

    for _, rows in groupby(sorted(PUBLISHED.values(), key=key), key=key):
        figures = [row.ap for row in rows]
        assert figures == sorted(figures, reverse=True)


def test_openmmlabs_and_universenets_rows_are_as_published(shared_reference):
    files = [
        shared_reference / folder / "checkpoints.json"
        for folder in ("openmmlab", "openmmlab_more", "universenet")
    ]
    theirs = {
        entry["url"]: (entry["hash"], entry["AP"])
        for file in files
        for entry in json.loads(file.read_text())
        if entry["shapes"] is not None
    }
    rows = [r for r in PUBLISHED.values() if r.publisher in ("openmmlab", "universenet")]
    assert {row.url: (row.sha256, row.ap) for row in rows} == theirs


def test_torchvisions_rows_are_as_published(shared_reference):
    facts = json.loads((shared_reference / "torchvision" / "facts.json").read_text())["models"]
    theirs = {
        entry["url"]: (entry["sha256_starts_with"], entry["box_map"])
        for name, entry in facts.items()
        if "mobilenet" not in name
    }
    rows = [row for row in PUBLISHED.values() if row.publisher == "torchvision"]
    assert {row.url: (row.sha256, row.ap) for row in rows} == theirs


@pytest.mark.parametrize(
    "name", [n if n in SOME else pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED]
)
def test_every_row_builds_a_model_with_its_credit(name):
    config = model_config(name)
    row = PUBLISHED[name]
    assert (config.weights.source, config.weights.authors_ap) == (row.url, row.ap)
    assert config.weights.license == PUBLISHERS[row.publisher].license
    with torch.device("meta"), BoundedBuilding():
        build(config)


@pytest.fixture(scope="module")
def published_shapes(shared_reference):
    """Name and shape of every published tensor, by the address of the file."""
    shapes = {}
    for folder in ("openmmlab_more", "openmmlab", "universenet"):
        known = json.loads((shared_reference / folder / "state_dict_shapes.json").read_text())
        for entry in json.loads((shared_reference / folder / "checkpoints.json").read_text()):
            shapes[entry["url"]] = known.get(entry["shapes"])
    known = json.loads((shared_reference / "torchvision" / "state_dict_shapes.json").read_text())
    facts = json.loads((shared_reference / "torchvision" / "facts.json").read_text())["models"]
    return shapes | {facts[name]["url"]: known[name]["tensors"] for name in known}


@pytest.mark.parametrize(
    "name",
    [
        n if n in SOME else pytest.param(n, marks=pytest.mark.slow)
        for n, row in PUBLISHED.items()
        if row.publisher != "sepc"
    ],
)
def test_the_published_tensors_fit_the_model_of_a_row(name, published_shapes):
    row, config = PUBLISHED[name], model_config(name)
    tensors = {
        key: torch.empty(shape, device="meta") for key, shape in published_shapes[row.url].items()
    }
    if row.publisher == "torchvision":
        ours = torchvision.renames(tensors)
        ids = list(config.category_ids)
        state = {ours[k]: torchvision.select_classes(ours[k], v, ids) for k, v in tensors.items()}
    else:
        tensors = openmmlab.split_attention(tensors)
        ours = openmmlab.renames(tensors)
        state = {ours[key]: openmmlab.fold(ours[key], tensors[key]) for key in ours}
    with torch.device("meta"):
        wanted = build(config).state_dict()
    unfit = misfits(state, wanted, max_lines=10**6)
    assert [line for line in unfit if "num_batches_tracked" not in line] == []


@pytest.mark.parametrize(
    ("name", "publisher"),
    [
        ("fsaf_r50_fpn", "sepc"),
        ("fsaf_r50_fpn.mmdet_1x", "openmmlab"),
        ("gfl_x101-32x4d_fpn_ms-2x_coco", "openmmlab"),
        ("fasterrcnn_resnet50_fpn_v2", "torchvision"),
        ("nonsense", "sepc"),
    ],
)
def test_the_publisher_follows_from_a_name(name, publisher):
    assert publisher_of(name) == publisher
