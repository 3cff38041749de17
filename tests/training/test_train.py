import json
import math
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tiny_runs import copy_of, edit_json, options, read_log, totals

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.cli import main
from sepc_zoo.config import ConfigError
from sepc_zoo.data import DataError
from sepc_zoo.evaluation.metrics import format_figure
from sepc_zoo.factory import create_model, load_model
from sepc_zoo.inference.loader import detect_files
from sepc_zoo.metric_names import METRICS
from sepc_zoo.training import callbacks
from sepc_zoo.training.callbacks import WriteReport
from sepc_zoo.training.config_file import read_options, write_options
from sepc_zoo.training.options import TrainError
from sepc_zoo.training.recipes import OPTIONAL
from sepc_zoo.training.run import Run
from sepc_zoo.training.trainer import train

REPO = Path(__file__).parents[2]
SHAPES = ("disc", "square", "triangle", "star")

pytestmark = pytest.mark.usefixtures("no_pictures")
write_report = WriteReport.after_training


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(options(shapes, folder))
    return folder


def test_both_model_folders_of_a_run_build(run):
    for name in ("last", "best"):
        model = create_model(f"local-dir:{run / name}")
        assert model.config.label_names == SHAPES
        assert model.config.weights.image_size == (64, 64)
        assert (run / name / "README.md").is_file()


@pytest.mark.parametrize("model", ["retinanet_mnv4s_pconv", "atss_mnv4s_fpn"])
def test_the_card_lists_what_the_run_changed(model, shapes, tmp_path):
    small = {"channels": 16, "method": {"box_loss": "ciou", "label_smoothing": 0.1}}
    changes = {"model": model, "model_kwargs": small, "repeat_factor": 0.5, "recipe": "strong"}
    train(options(shapes, tmp_path / "run", epochs=1, **changes))
    card = (tmp_path / "run" / "last" / "README.md").read_text()
    assert "- recipe: strong\n" in card
    assert "- repeat factor: 0.5\n" in card
    assert "- changes to the method: label smoothing 0.1, box loss ciou\n" in card


def test_the_card_of_a_run_by_default_names_no_changes(run):
    card = (run / "last" / "README.md").read_text()
    assert "- recipe: small\n" in card
    assert "- repeat factor: none\n" in card
    assert "- changes to the method: none\n" in card


def test_metrics_of_a_run_have_the_twelve_figures_and_each_class(run):
    metrics = json.loads((run / "last" / "metrics.json").read_text())
    assert list(metrics) == [*METRICS, "per_class"]
    assert tuple(metrics["per_class"]) == SHAPES


def test_a_run_logs_losses_and_ap(run):
    rows = read_log(run)
    assert list(rows[0]) == [
        *("step", "epoch", "lr", "loss", "loss_cls", "loss_box", "images_per_second", "memory_gib"),
        *("AP", "AP50", "AP75"),
    ]
    assert [(row["step"], row["epoch"]) for row in rows] == [("2", "1")] * 2 + [("4", "2")] * 2
    losses, ap = rows[0], rows[1]
    terms = float(losses["loss_cls"]) + float(losses["loss_box"])
    assert float(losses["loss"]) == pytest.approx(terms)
    assert float(losses["images_per_second"]) > 0
    assert float(losses["memory_gib"]) > 0
    assert (losses["AP"], ap["loss"]) == ("", "")
    assert 0 <= float(ap["AP"]) <= 1


def test_a_run_draws_samples_and_curves(run):
    names = ["samples/epoch_001.png", "samples/epoch_002.png"]
    for name in names + (["curves.png"] if find_spec("matplotlib") else []):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 64
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["epoch_001.png", "epoch_002.png"]


def test_a_run_ends_with_the_report_of_its_best_model(run):
    pytest.importorskip("matplotlib")
    page = (run / "report.html").read_text()
    best = json.loads((run / "best" / "metrics.json").read_text())
    assert "<h1>retinanet_mnv4s_pconv</h1>" in page
    assert f"AP {format_figure(best['AP'])}</title>" in page
    assert re.search(r"<dt>best epoch</dt><dd>[12] of 2</dd>", page)
    assert "Where AP is lost" in page


def test_the_report_needs_no_second_validation(shapes, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    validations = []
    monkeypatch.setattr(WriteReport, "after_training", write_report)
    monkeypatch.setattr(
        "sepc_zoo.evaluation.validate.detect_files",
        lambda *args: validations.append(1) or detect_files(*args),
    )
    train(options(shapes, tmp_path / "run", val_interval=2))
    assert len(validations) == 1  # of four images, a batch
    assert (tmp_path / "run" / "report.html").exists()


def test_without_matplotlib_a_run_has_no_report(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(WriteReport, "after_training", write_report)
    monkeypatch.setattr(callbacks, "find_spec", lambda _: None)
    train(options(shapes, tmp_path / "run", val_interval=2))
    assert (tmp_path / "run" / "best").exists()
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_run_keeps_its_options(run, shapes):
    kept, asked = read_options(run), options(shapes, run)
    chosen = {name: getattr(kept, name) for name in OPTIONAL if getattr(asked, name) is None}
    assert chosen["lr"] > 0
    assert chosen["model_ema"] is not None
    assert kept == replace(asked, **chosen)
    assert yaml.safe_load((run / "config.yaml").read_text())["image_size"] == [64, 64]


def test_a_run_leaves_nothing_half_written(run):
    assert not [p for p in run.rglob("*") if p.name.startswith(".")]


def test_a_folder_with_a_run_is_not_overwritten(run, shapes):
    before = (run / "log.csv").read_text()
    with pytest.raises(TrainError, match=r"holds a run: go on with --resume .*--output"):
        train(options(shapes, run))
    assert (run / "log.csv").read_text() == before


def test_validating_the_best_model_gives_the_ap_of_the_run(run, shapes, tmp_path):
    arguments = ["--model", run / "best", "--data", shapes, "--output", tmp_path, "--device", "cpu"]
    assert main(["validate", *map(str, arguments), "--workers", "0"]) == 0
    for name in ("metrics.json", "detections.json"):
        ours = json.loads((tmp_path / name).read_text())
        if name == "metrics.json":
            del ours["errors"]  # which only validate computes
        assert ours == json.loads((run / "best" / name).read_text())
    best = max(float(row["AP"]) for row in read_log(run) if row["AP"])
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] == best


@pytest.mark.parametrize(
    "method", ["retinanet", "freeanchor", pytest.param("fsaf", marks=pytest.mark.slow)]
)
def test_a_few_steps_lower_the_loss(method, shapes, tmp_path):
    changes = {"epochs": 8, "val_interval": 8, "log_interval": 1, "lr": 2e-3, "hflip": 0.0}
    train(options(shapes, tmp_path, model=f"{method}_mnv4s_pconv", **changes))
    losses = totals(tmp_path)
    assert len(losses) == 16
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])


def test_a_batch_larger_than_the_data_set_is_what_there_is(shapes, tmp_path):
    train(options(shapes, tmp_path, batch_size=20, max_steps=2, epochs=None))
    assert [row["step"] for row in read_log(tmp_path) if row["AP"]] == ["1", "2"]


def test_max_steps_end_a_run_inside_an_epoch(shapes, tmp_path):
    train(options(shapes, tmp_path, max_steps=3, epochs=None))
    assert [row["step"] for row in read_log(tmp_path) if row["AP"]] == ["2", "3"]


def test_fine_tuning_keeps_the_head_by_class_name(shapes, tmp_path):
    changes = {"channels": 16, "neck": {"blocks": 1}}
    model = create_model("retinanet_mnv4s_pconv", label_names=["star", "cat", "disc"], **changes)
    torch.nn.init.normal_(model.head.cls.bias)
    save_model(model, tmp_path / "model")
    asked = options(shapes, tmp_path / "run", model=f"local-dir:{tmp_path / 'model'}")
    tuned = Run(replace(asked, model_kwargs={})).detector
    old, new = (m.head.cls.bias.view(9, -1) for m in (model, tuned))
    assert torch.equal(new[:, 3], old[:, 0])
    assert torch.equal(new[:, 0], old[:, 2])
    assert torch.equal(tuned.fpn.p7.weight, model.fpn.p7.weight)
    assert tuned.config.label_names == SHAPES


def test_a_pretrained_backbone_is_frozen_and_a_new_one_is_not(shapes, tmp_path):
    changes = {"model": "retinanet_r18_pconv", "model_kwargs": {"channels": 16}}
    fresh = Run(options(shapes, tmp_path / "a", **changes))
    assert (fresh.recipe.freeze_stages, fresh.recipe.freeze_bn) == (0, False)
    assert all(p.requires_grad for p in fresh.detector.parameters())
    folder = save_model(fresh.detector, tmp_path / "model")
    again = Run(options(shapes, tmp_path / "b", model=f"local-dir:{folder}", model_kwargs={}))
    assert (again.recipe.freeze_stages, again.recipe.freeze_bn) == (1, True)
    assert not again.detector.backbone.body.conv1.weight.requires_grad


def test_options_change_the_recipe(shapes, tmp_path):
    changes = {"opt": "sgd", "lr": 0.02, "weight_decay": 0.0, "sched": "multistep"}
    more = {"warmup_steps": 0, "clip_grad": 1.0, "freeze_stages": 0, "freeze_bn": True}
    run = Run(options(shapes, tmp_path, **changes, **more))
    group = run.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.02, 0.0, 0.9)
    asked = {key: value for key, value in (changes | more).items() if key != "lr"}
    assert {key: getattr(run.recipe, key) for key in asked} == asked


def test_the_input_options_are_saved_with_the_model(shapes, tmp_path):
    changes = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0), "image_size": (48, 96)}
    weights = Run(options(shapes, tmp_path, **changes)).detector.config.weights
    assert (weights.mean, weights.std, weights.image_size) == tuple(changes.values())
    assert weights.dataset == "shapes"


def test_bf16_trains_on_the_cpu(shapes, tmp_path):
    # not smaller: oneDNN's bf16 gradient of a strided convolution over one cell is garbage
    changes = {"image_size": (128, 128), "amp": "bf16", "max_steps": 1}
    train(options(shapes, tmp_path, model="retinanet_mnv4s_sepc_lite", **changes))
    weights = load_model(tmp_path / "last").state_dict()
    assert all(v.isfinite().all() and v.dtype != torch.bfloat16 for v in weights.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_is_refused_on_the_cpu(shapes, tmp_path):
    with pytest.raises(ConfigError, match="--amp fp16 needs a GPU; the CPU can do bf16"):
        train(options(shapes, tmp_path, amp="fp16"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [0, 1], ids=["none at all", "in one image"])
@pytest.mark.parametrize("method", ["retinanet", "freeanchor", "fsaf"])
def test_images_without_boxes_can_be_trained_on(method, left, shapes, tmp_path):
    data = copy_of(shapes, tmp_path)

    def drop_boxes(content):
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] <= left]

    edit_json(data / "annotations" / "instances_train.json", drop_boxes)
    changes = {"model": f"{method}_mnv4s_pconv", "batch_size": 8, "max_steps": 1}
    train(options(data, tmp_path / "run", **changes))
    assert math.isfinite(float(read_log(tmp_path / "run")[0]["loss"]))


def test_broken_images_of_either_split_stop_the_start(shapes, tmp_path):
    for split in ("train", "val"):
        data = copy_of(shapes, tmp_path / split)
        broken = sorted((data / split).iterdir())[:2]
        broken[0].write_bytes(b"no image")
        broken[1].unlink()
        with pytest.raises(DataError) as error:
            train(options(data, tmp_path / "run"))
        assert all(path.name in str(error.value) for path in broken)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_images_is_refused(split, shapes, tmp_path):
    data = copy_of(shapes, tmp_path)

    def clear(content):
        content["images"].clear()
        content["annotations"].clear()

    edit_json(data / "annotations" / f"instances_{split}.json", clear)
    with pytest.raises((TrainError, DataError), match="no images"):
        train(options(data, tmp_path / "run"))


def test_bad_boxes_are_left_out_and_reported_only_where_asked(shapes, tmp_path, capsys):
    data = copy_of(shapes, tmp_path)

    def flatten(content):
        content["annotations"][0]["bbox"][2] = 0

    edit_json(data / "annotations" / "instances_train.json", flatten)
    with pytest.raises(DataError):
        Run(options(data, tmp_path / "run"))
    train(options(data, tmp_path / "run", drop_bad_boxes=True, max_steps=1))
    said = capsys.readouterr().out
    assert "left out 1 boxes" in said
    assert "survived" not in said  # a run without faults does not count them


def test_a_fine_tuned_model_sees_images_as_training_does_and_has_no_credit(shapes, tmp_path):
    """Boxes are continuous, images keep their ratio, and the weights are not the published ones."""
    theirs = create_model("fsaf_r18_fpn", channels=16, head={"convs": 0}, inclusive_boxes=True)
    base = save_model(theirs, tmp_path / "base")
    published = {"authors_ap": 40.0, "tag": "t", "keep_ratio": False}
    edit_json(base / "config.json", lambda c: c["pretrained_cfg"].update(published))
    run = Run(options(shapes, tmp_path / "run", model=f"local-dir:{base}", model_kwargs={}))
    config = run.detector.config
    assert not config.inclusive_boxes
    assert config.weights.keep_ratio
    assert (config.weights.authors_ap, config.weights.tag) == (None, "")


def test_category_ids_of_the_data_set_come_back(shapes, tmp_path):
    data = copy_of(shapes, tmp_path)

    def spread_ids(content):
        for category in content["categories"]:
            category["id"] = 10 * category["id"] + 7
        for annotation in content["annotations"]:
            annotation["category_id"] = 10 * annotation["category_id"] + 7

    for split in ("train", "val"):
        edit_json(data / "annotations" / f"instances_{split}.json", spread_ids)
    changes = {"postprocess": {"score_threshold": 0.0}, "channels": 16}
    train(options(data, tmp_path / "run", model_kwargs=changes, max_steps=1))
    last = tmp_path / "run" / "last"
    assert json.loads((last / "config.json").read_text())["category_ids"] == [17, 27, 37, 47]
    results = json.loads((last / "detections.json").read_text())
    assert {row["category_id"] for row in results} <= {17, 27, 37, 47}
    assert results


def test_the_log_of_a_run_that_never_saved_is_replaced(shapes, tmp_path):
    write_options(options(shapes, tmp_path, max_steps=1))
    (tmp_path / "log.csv").write_text("step,epoch,loss_positive_bag\n1,1,0.5\n")
    train(options(shapes, tmp_path, max_steps=1))
    assert [row["loss_cls"] != "" for row in read_log(tmp_path)] == [True, False]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((f"{name}_interval", 0) for name in ("log", "save", "val")),
        *((name, 0) for name in ("batch_size", "epochs")),
        *((name, -1) for name in ("max_steps", "workers", "seed")),
        *((name, 0.0) for name in ("lr", "clip_grad")),
        *(("freeze_stages", 5), ("hflip", 1.5), ("lr", math.nan)),
        *(("weight_decay", -0.1), ("scale", (0.0, 1.0))),
    ],
)
def test_a_number_out_of_range_is_refused(name, value):
    with pytest.raises(ConfigError, match=re.escape(f"{name} is {value}")):
        options("data", "run", **{name: value})
