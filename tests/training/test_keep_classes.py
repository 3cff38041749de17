"""Fine-tuning onto other classes while the old ones are kept."""

import pytest
import torch
from tiny_runs import assert_same_weights, options, resume, train_until

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.config import ConfigError
from sepc_zoo.factory import create_model, load_model
from sepc_zoo.training.gradients import detach_classes
from sepc_zoo.training.run import Run
from sepc_zoo.training.summary import describe
from sepc_zoo.training.trainer import train

pytestmark = pytest.mark.usefixtures("no_pictures")

OLD = ["star", "zebra", "yak"]  # the shapes have stars
KEPT = {"keep_classes": True, "freeze": "neck", "opt": "sgd", "weight_decay": 0.0, "max_steps": 2}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The folder of a trained model."""
    changes = {"channels": 16, "neck": {"blocks": 1, "norm": True}}
    model = create_model("retinanet_mnv4s_pconv", label_names=OLD, **changes)
    torch.nn.init.normal_(model.head.cls.weight)
    return save_model(model, tmp_path_factory.mktemp("old") / "model")


def tuned(old, shapes, output, **changes):
    model = {"model": f"local-dir:{old}", "model_kwargs": {}}
    return options(shapes, output, **model | KEPT | {"epochs": None} | changes)


def test_old_classes_stand_behind_those_of_the_data(old, shapes, tmp_path):
    run = Run(tuned(old, shapes, tmp_path))
    names, ids = run.detector.config.label_names, run.detector.config.category_ids
    assert names == (*run.train_data.label_names[:-2], "zebra", "yak")
    assert set(names[:-2]) > {"star"}
    assert len({*ids}) == len(ids)
    assert [names[label] for label in run.unseen_classes] == ["zebra", "yak"]
    assert run.val_data.label_names == names


def test_what_the_data_lacks_is_detected_as_before(old, shapes, tmp_path):
    before, images = load_model(old), torch.rand(1, 3, 64, 64)
    train(tuned(old, shapes, tmp_path))
    after = load_model(tmp_path / "last")
    index = [after.config.label_names.index(name) for name in OLD]
    with torch.no_grad():
        logits, new = before(images).logits, after(images).logits[..., index]
    # Convolutions of other widths may sum in another order.
    assert torch.allclose(new[..., 1:], logits[..., 1:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(new[..., 0], logits[..., 0], atol=1e-3)  # stars are in the data


def test_a_run_with_kept_classes_resumes_as_it_was(old, shapes, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tuned(old, shapes, whole))
    train_until(1, tuned(old, shapes, parts))
    resume(parts)
    assert_same_weights(parts, whole)


def test_a_frozen_neck_leaves_only_the_head_to_learn(old, shapes, tmp_path):
    run = Run(tuned(old, shapes, tmp_path / "run"))
    learning = {name for name, p in run.detector.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in run.detector.named_parameters() if "head." in name}
    assert "all, and the neck, frozen" in describe(run)["backbone"]
    train(tuned(old, shapes, tmp_path / "run"))
    before, after = load_model(old).state_dict(), load_model(tmp_path / "run/last").state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) or name.startswith("head.")


def test_detached_classes_have_no_gradient():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    detached = detach_classes(logits, [1, 3])
    assert torch.equal(detached, logits)
    detached.sum().backward()
    assert logits.grad.sum(dim=(0, 1)).tolist() == [6, 0, 6, 0]


def test_classes_are_kept_of_a_trained_model_with_a_score_for_each(shapes, tmp_path):
    with pytest.raises(ConfigError, match="--keep-classes needs a trained model"):
        Run(options(shapes, tmp_path / "run", keep_classes=True))
    two_stage = create_model("fasterrcnn_mnv4s_fpn", num_classes=2, channels=8)
    folder = save_model(two_stage, tmp_path / "model")
    with pytest.raises(ConfigError, match="--keep-classes: fasterrcnn takes what is not labelled"):
        Run(tuned(folder, shapes, tmp_path / "run"))
