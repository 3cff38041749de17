"""``validate --from-json`` on real annotations against pycocotools on the same two files."""

import contextlib
import io
import json

import faster_coco_eval
import pycocotools.coco
import pycocotools.cocoeval
import pytest
from difficulties import KINDS, make_results

from sepc_zoo.cli import main
from sepc_zoo.metric_names import METRICS

SETS = {name: [name] for name in KINDS} | {"everything": list(KINDS)}
PYCOCOTOOLS = pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval
FASTER = faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
INSTANCES = "coco_by_sa/annotations/instances_val2017.json"


def figures_of(coco, evaluator, annotations_file, rows):
    """The twelve figures of an evaluator from annotations and results, and AP of each class."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = coco(str(annotations_file))
        # loadRes refuses an empty list of results
        found = ground_truth.loadRes(rows) if rows else coco()
        if not rows:
            found.dataset = ground_truth.dataset | {"annotations": []}
            found.createIndex()
        evaluation = evaluator(ground_truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    by_class = evaluation.eval["precision"][..., 0, -1].transpose(2, 0, 1)
    per_class = [own[own > -1].mean() if (own > -1).any() else -1 for own in by_class]
    return [*evaluation.stats[:12], *per_class]


@pytest.mark.parametrize(
    "name",
    [n if n == "everything" else pytest.param(n, marks=pytest.mark.slow) for n in SETS],
)
def test_figures_equal_those_of_pycocotools(name, shared_data, tmp_path):
    annotations_file = shared_data / INSTANCES
    rows = make_results(SETS[name], json.loads(annotations_file.read_text()))
    file = tmp_path / "detections.json"
    file.write_text(json.dumps(rows))
    data = ("--data", str(shared_data / "coco_by_sa"), "--output", str(tmp_path / "out"))
    assert main(["validate", "--from-json", str(file), *data, "--no-report"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    expected = figures_of(*PYCOCOTOOLS, annotations_file, rows)
    ours = [metrics[key] for key in METRICS] + [k["AP"] for k in metrics["per_class"].values()]
    assert ours == pytest.approx(expected, abs=1e-6)
    assert figures_of(*FASTER, annotations_file, rows) == pytest.approx(expected, abs=1e-6)


def test_there_are_at_least_twenty_kinds_of_difficulty():
    assert len(KINDS) >= 20
