"""The table of models that `sepc-zoo list` shows, and the data files behind it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import models as counting
from sepc_zoo import catalog as catalog_module
from sepc_zoo.catalog import MEASURED_FILE, SIZES_FILE, catalog, measured_ap, read_table
from sepc_zoo.config import METHOD_TYPES, override
from sepc_zoo.factory import build, count_operations
from sepc_zoo.files import write_csv
from sepc_zoo.published import PUBLISHED
from sepc_zoo.registry import model_config

UPDATE = "run `python benchmarks/models.py`"
SIZES = [("fsaf_r50_fpn", 30, 9.0), ("fsaf_r50_sepc", 20, 10.5), ("fsaf_r18_fpn", 10, 8.0)]


@pytest.fixture
def sizes(tmp_path, monkeypatch):
    """A small table of sizes in place of the package's."""
    file = tmp_path / "models.csv"
    write_csv(file, counting.HEADER, [(*row, 800, 1333) for row in SIZES])
    monkeypatch.setattr(catalog_module, "SIZES_FILE", file)


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Make a table of measured AP the package's."""

    def write(*rows):
        file = tmp_path / "coco_val2017.csv"
        write_csv(file, ["name", "ap", "images"], rows)
        monkeypatch.setattr(catalog_module, "MEASURED_FILE", file)

    return write


def test_every_listed_model_is_counted_and_no_other():
    assert [*read_table(SIZES_FILE)] == counting.counted_names(), UPDATE


@pytest.mark.parametrize(
    "name",
    [
        next(iter(PUBLISHED)),
        "retinanet_mnv4s_sepc",
        *(pytest.param(f"{m}_swin_tiny_pconv", marks=pytest.mark.slow) for m in METHOD_TYPES),
        *(pytest.param(name, marks=pytest.mark.slow) for name in [*PUBLISHED][1:]),
    ],
)
def test_counts_are_those_of_the_model(name):
    row = read_table(SIZES_FILE)[name]
    assert counting.count(name).row(name) == list(row.values()), UPDATE


def test_counts_are_those_of_a_model_with_weights():
    config = override(model_config("retinanet_mnv4s_sepc"), {"weights": {"image_size": (64, 70)}})
    parameters, gmacs, size = count_operations(config)
    model = build(config)
    assert parameters == sum(p.numel() for p in model.parameters())
    assert size == (64, 96)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 64, 96))
    assert gmacs == counter.get_total_flops() / 2e9


def test_the_table_in_the_readme_is_current():
    text = counting.README.read_text(encoding="utf-8")
    assert counting.TABLE.search(text)
    assert counting.with_table(text) == text, UPDATE


@pytest.mark.usefixtures("sizes")
def test_models_are_sorted_and_unknown_figures_come_last():
    names = ["fsaf_r34_fpn", "fsaf_r50_sepc", "fsaf_r50_fpn", "fsaf_r18_fpn"]

    def order(key):
        return [names.index(entry.name) for entry in catalog(names, key)]

    assert order("name") == [3, 0, 2, 1]
    assert order("params") == [3, 1, 2, 0]
    assert order("gmacs") == [3, 2, 1, 0]
    assert order("ap")[:2] == [1, 2]


@pytest.mark.usefixtures("sizes")
def test_a_name_without_a_tag_has_its_default_weights():
    plain, unpublished = catalog(["fsaf_r50_fpn", "fsaf_r18_fpn"])[::-1]
    assert (plain.weights, plain.ap) == ("fsaf_r50_fpn.coco_1x", 36.8)
    assert (plain.publisher, plain.license) == ("sepc", "apache-2.0")
    assert (plain.parameters, plain.gmacs, plain.image_size) == (30, 9.0, (800, 1333))
    assert (unpublished.weights, unpublished.ap, unpublished.license) == (None, None, None)


def test_only_figures_of_all_val2017_count_as_measured(measure):
    measure(("fsaf_r50_fpn.coco_1x", 36.75, 5000), ("fsaf_r50_sepc.coco_1x", 99.0, 91))
    assert measured_ap() == {"fsaf_r50_fpn.coco_1x": 36.75}
    assert [e.measured_ap for e in catalog(["fsaf_r50_fpn", "fsaf_r50_sepc"])] == [36.75, None]


def test_the_table_of_measured_ap_is_part_of_the_package():
    assert MEASURED_FILE.is_file()
    assert set(read_table(MEASURED_FILE)) <= set(PUBLISHED)
