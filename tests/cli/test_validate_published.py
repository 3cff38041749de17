"""`scripts/validate_published.py`: published weights measured again, one row of a table each."""

import json
from unittest.mock import Mock

import pytest
from commands import assert_refused, call

from scripts import validate_published
from sepc_zoo.catalog import MEASURED_FILE, read_table
from sepc_zoo.errors import HubError
from sepc_zoo.factory import load_model
from sepc_zoo.published import PUBLISHED

FIRST, SECOND = "fsaf_r50_fpn.coco_1x", "fsaf_r50_sepc.coco_1x"
MACHINE = ("--workers", "0", "--device", "cpu")


@pytest.fixture
def load(model, monkeypatch):
    """Every published name loads the tiny model."""
    load = Mock(side_effect=lambda _: load_model(model))
    monkeypatch.setattr(validate_published, "model_with_weights", load)
    return load


@pytest.fixture
def measure(shapes, tmp_path):
    """Run the script on the tiny data set."""
    flags = ["--data", str(shapes), *MACHINE, "--output", str(tmp_path / "t.csv")]
    return lambda *names: validate_published.main([*names, *flags])


def test_a_row_has_the_ap_that_validate_measures(load, measure, model, shapes, tmp_path):
    assert measure("fsaf_r50_fpn") == 0
    (row,) = read_table(tmp_path / "t.csv").values()
    assert [*row] == validate_published.HEADER
    assert (row["name"], row["published_ap"], row["images"]) == (FIRST, "36.8", "4")
    assert "CPU" in row["device"]
    where = ("--data", shapes, *MACHINE, "--output", tmp_path / "v", "--no-report")
    assert call("validate", "--model", model, *where) == 0
    ap = 100 * json.loads((tmp_path / "v" / "metrics.json").read_text())["AP"]
    assert float(row["ap"]) == pytest.approx(ap, abs=0.006)
    assert float(row["difference"]) == pytest.approx(ap - 36.8, abs=0.006)
    load.assert_called_once_with(FIRST)


def test_a_model_that_has_a_row_is_skipped(load, measure, tmp_path):
    assert measure(SECOND) == 0
    before = (tmp_path / "t.csv").read_text()
    assert measure("fsaf_r50_sepc*", "fsaf_r50_fpn") == 0
    loaded = [call.args[0] for call in load.call_args_list]
    assert sorted(loaded) == sorted({SECOND, FIRST, "fsaf_r50_sepc_lite.coco_1x"})
    assert (tmp_path / "t.csv").read_text().startswith(before)
    assert measure("fsaf_r50_sepc*", "fsaf_r50_fpn") == 0
    assert load.call_count == 3


def test_a_model_that_cannot_be_had_does_not_stop_the_others(load, measure, tmp_path, capsys):
    load.side_effect = [HubError("no such file"), load.side_effect(None)]
    assert measure(FIRST, SECOND) == 1
    assert_refused(capsys, f"not done: {FIRST}: no such file")
    assert [*read_table(tmp_path / "t.csv")] == [SECOND]


def test_a_name_without_published_weights_ends_with_2(load, measure, tmp_path, capsys):
    assert measure("retinanet_r34_fpn") == 2
    assert_refused(capsys, "retinanet_r34_fpn", "sepc-zoo list --pretrained")
    assert not load.called
    assert not (tmp_path / "t.csv").exists()


def test_all_published_weights_go_into_the_table_of_the_package_by_default():
    assert {row.name for row in validate_published.chosen(())} == {*PUBLISHED}
    arguments = validate_published.Arguments(data="COCO")
    assert arguments.output == str(MEASURED_FILE)
