"""``validate --from-json`` on real annotations against pycocotools on the same two files."""

import contextlib
import io
import json

import faster_coco_eval
import pycocotools.coco
import pycocotools.cocoeval
import pytest
from difficulties import KINDS
from difficulties import make_results as make_difficult_results

from sepc_zoo.cli import main
from sepc_zoo.metric_names import METRICS

SETS = {name: [name] for name in KINDS} | {"everything": list(KINDS)}
PYCOCOTOOLS = pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval
FASTER = faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
INSTANCES = "coco_by_sa/annotations/instances_val2017.json"


def figures_of(coco, evaluator, truth_file, rows):
    """The twelve figures that an evaluator itself computes from a truth file and results."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco(str(truth_file))
        # loadRes refuses an empty list of results
        found = truth.loadRes(rows) if rows else coco()
        if not rows:
            found.dataset = truth.dataset | {"annotations": []}
            found.createIndex()
        evaluation = evaluator(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats[:12])


@pytest.mark.parametrize("name", SETS)
def test_figures_equal_those_of_pycocotools(name, shared_data, tmp_path):
    truth_file = shared_data / INSTANCES
    rows = make_difficult_results(SETS[name], json.loads(truth_file.read_text()))
    file = tmp_path / "results.json"
    file.write_text(json.dumps(rows))
    data = ("--data", str(shared_data / "coco_by_sa"), "--output", str(tmp_path / "out"))
    assert main(["validate", "--from-json", str(file), *data, "--no-report"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    expected = figures_of(*PYCOCOTOOLS, truth_file, rows)
    assert [metrics[key] for key in METRICS] == pytest.approx(expected, abs=1e-6)
    assert figures_of(*FASTER, truth_file, rows) == pytest.approx(expected, abs=1e-6)


def test_there_are_at_least_twenty_kinds_of_difficulty():
    assert len(KINDS) >= 20
