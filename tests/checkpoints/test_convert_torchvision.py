import re

import pytest
import torch
from torchvision.models import detection

from sepc_zoo.checkpoints.convert import from_torchvision
from sepc_zoo.checkpoints.convert.sepc_authors import CheckpointError
from sepc_zoo.checkpoints.convert.torchvision import our_name, renames
from sepc_zoo.models.build import build
from sepc_zoo.published import PUBLISHED
from sepc_zoo.registry import UnknownModelError, coco_categories, model_config

ROWS = [row for row in PUBLISHED.values() if row.publisher == "torchvision"]
IDS = list(coco_categories()[1])
OTHERS = [i for i in range(1, 91) if i not in IDS]


def their_name(row):
    return row.url.rpartition("/")[2].rpartition("_coco")[0]


def their_state(name):
    """A state dict as torchvision's own constructor makes it, each tensor with its own values."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None)
    return {
        k: torch.rand(v.shape) if v.ndim else v.new_zeros((), device="cpu")
        for k, v in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def faster_rcnn():
    return their_state("fasterrcnn_resnet50_fpn")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_names_and_shapes_are_those_of_torchvisions_constructors(row):
    with torch.device("meta"):
        theirs = getattr(detection, their_name(row))(weights=None, weights_backbone=None)
        ours = build(model_config(row.name)).state_dict()
    names = renames(theirs.state_dict())
    assert len(set(names.values())) == len(names)
    frozen = {key for key in ours if key.endswith("num_batches_tracked")}
    assert set(ours) - frozen <= set(names.values()) <= set(ours)
    classes = re.compile(r"^(roi_head\.(cls|box)|head\.cls)\.")
    for key, value in theirs.state_dict().items():
        if not classes.search(names[key]):
            assert value.shape == ours[names[key]].shape, key


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_model_goes_by_three_names(row):
    assert our_name(row.name) == our_name(their_name(row)) == row.name
    assert our_name(row.architecture) == f"{row.architecture}.tv_coco"


@pytest.mark.parametrize("name", ["fasterrcnn_r18_fpn", "maskrcnn_resnet50_fpn", "fsaf_r50_fpn"])
def test_others_are_refused_with_a_list(name):
    with pytest.raises(UnknownModelError, match=f"no '{name}'; it published retinanet_r50_fpn"):
        from_torchvision({}, name)


def test_classes_keep_their_rows_and_a_softmax_those_that_are_no_class(faster_rcnn):
    model = from_torchvision(faster_rcnn, "fasterrcnn_r50_fpn")
    cls = faster_rcnn["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(model.roi_head.cls.weight, cls[[0, *IDS, *OTHERS]])
    box = faster_rcnn["roi_heads.box_predictor.bbox_pred.bias"].view(91, 4)
    assert torch.equal(model.roi_head.box.bias.view(80, 4), box[IDS])
    assert model.config.num_classes == 80
    assert list(model.config.category_ids) == IDS
    assert model.config == model_config("fasterrcnn_r50_fpn.tv_coco")
    assert not model.training


def test_each_anchor_of_a_dense_head_keeps_the_rows_of_the_classes():
    state = their_state("retinanet_resnet50_fpn_v2")
    model = from_torchvision(state, "retinanet_resnet50_fpn_v2")
    theirs = state["head.classification_head.cls_logits.bias"].view(9, 91)
    assert torch.equal(model.head.cls.bias.view(9, 80), theirs[:, IDS])


def test_the_type_of_the_weights_stays(faster_rcnn):
    state = {k: v.double() if v.is_floating_point() else v for k, v in faster_rcnn.items()}
    model = from_torchvision(state, "fasterrcnn_r50_fpn")
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def older_name(key):
    """Names before torchvision 0.13, as its own code renames them."""
    key = re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", key)
    key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(r"(head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_older_names_are_known(name):
    keys = [k for k in their_state(name) if not k.startswith("backbone.body.")]
    names, older = renames(keys), renames(map(older_name, keys))
    assert any(key != older_name(key) for key in keys)
    assert [older[older_name(key)] for key in keys] == [names[key] for key in keys]


def test_counts_of_batches_in_frozen_norms_may_be_there(faster_rcnn):
    counted = dict(faster_rcnn) | {
        key.replace("running_var", "num_batches_tracked"): torch.tensor(7)
        for key in faster_rcnn
        if key.endswith("running_var")
    }
    ours, theirs = (from_torchvision(s, "fasterrcnn_r50_fpn") for s in (faster_rcnn, counted))
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(name))


def test_a_checkpoint_of_another_version_is_refused_by_its_tensors(faster_rcnn):
    with pytest.raises(CheckpointError, match=r"missing: fpn.lateral_norms(.|\n)*and \d+ more"):
        from_torchvision(faster_rcnn, "fasterrcnn_r50_fpn.tv_coco_v2")
    with pytest.raises(CheckpointError, match="left over: momentum"):
        from_torchvision(faster_rcnn | {"momentum": torch.zeros(1)}, "fasterrcnn_r50_fpn")
    short = {key: value for key, value in faster_rcnn.items() if "bbox_pred" not in key}
    with pytest.raises(CheckpointError, match=r"missing: rpn\.box\.weight"):
        from_torchvision(short, "fasterrcnn_r50_fpn")
