"""Class weights of a run."""

import json

import pytest
import torch
from tiny_runs import before_step, options

from sepc_zoo.checkpoints.folder import read_config
from sepc_zoo.cli import main
from sepc_zoo.options import OptionError
from sepc_zoo.training.run import Run
from sepc_zoo.training.trainer import train

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_balanced_weights_are_those_of_scikit_learn(shapes, tmp_path):
    run = Run(options(shapes, tmp_path, class_weights=("balanced",)))
    labels = torch.cat([record.labels for record in run.train_data.records])
    for k, weight in enumerate(run.class_weights.tolist()):
        count = (labels == k).sum().item()
        present = len(labels.unique())
        assert weight == pytest.approx(len(labels) / (present * count) if count else 1)
    assert run.class_weights[labels].mean().item() == pytest.approx(1)


def test_weights_are_given_by_name_and_others_are_one(shapes, tmp_path):
    run = Run(options(shapes, tmp_path, class_weights=("disc=2.5",)))
    names = run.train_data.label_names
    assert run.class_weights.tolist() == [2.5 if name == "disc" else 1 for name in names]


def test_boxes_get_the_weight_of_their_class(shapes, tmp_path, monkeypatch):
    seen = []
    before_step(monkeypatch, 1, lambda _, batches: seen.extend(batches[0].targets))
    train(options(shapes, tmp_path, class_weights=("disc=2.5",), epochs=1))
    names = read_config(tmp_path / "last").label_names
    for target in seen:
        expected = [2.5 if names[label] == "disc" else 1 for label in target["labels"]]
        assert target["weights"].tolist() == expected
    assert any(2.5 in target["weights"] for target in seen)


PAIR, RANGE = "it must be a class=weight", "a weight must be above 0 and finite"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        *(((text,), f"'{text}'; {PAIR}") for text in ("disc", "disc=no", "2", "balanced=no")),
        *(((f"a={x}",), f"'a={x}'; {RANGE}") for x in ("0", "-1", "inf", "nan")),
        (("balanced", "a=2"), f"'balanced'; {PAIR}"),
        (("a=2", "b=1", "a=3"), "'a=3'; 'a' has a weight already"),
        ({"a": 0}, f"'a=0'; {RANGE}"),
        ({"a": None}, f"'a=None'; {PAIR}"),
    ],
)
def test_a_weight_that_is_none_is_refused(given, problem):
    with pytest.raises(OptionError, match=f"^class_weights has {problem}$"):
        options("data", "run", class_weights=given)


def test_a_dict_gives_the_weights_of_its_classes():
    given = options("data", "run", class_weights={"a": 2, "b=c": 0.5})
    assert given == options("data", "run", class_weights=("a=2", "b=c=0.5"))
    assert given.weight_of_class() == {"a": 2.0, "b=c": 0.5}


def test_a_class_that_the_data_lack_is_named(shapes, tmp_path, capsys):
    flags = ["--model", "retinanet_r18_fpn", "--output", str(tmp_path / "run"), "--device", "cpu"]
    flags += ["--data", str(shapes), "--class-weights", "unicorn=2"]
    assert main(["train", *flags]) == 2
    assert "--class-weights has ['unicorn']; the classes are" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_class_names_may_have_any_characters(tmp_path):
    given = options(tmp_path, tmp_path, class_weights=("a = b.c=2",))
    assert given.weight_of_class() == {"a = b.c": 2.0}
    assert json.dumps(given.class_weights) == '["a = b.c=2"]'
