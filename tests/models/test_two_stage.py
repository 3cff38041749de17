from functools import partial

import pytest
import tiny_detectors
import torch
from process_pair import ProcessPair
from tiny_detectors import TWO_STAGE_NECKS, no_boxes, some_images, some_targets
from torch import nn

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.config import ConfigError, override
from sepc_zoo.factory import create_model, model_info
from sepc_zoo.inference.predictor import detect
from sepc_zoo.models.necks.sepc import SEPC, PyramidConv
from sepc_zoo.models.two_stage import TwoStageDetector
from sepc_zoo.outputs import TwoStagePredictions
from sepc_zoo.registry import model_config

tiny_model = partial(tiny_detectors.tiny_model, "fasterrcnn")


def test_outputs_have_one_type_and_their_shapes():
    model, images = tiny_model(), some_images()
    anchors = 3 * sum(-(-96 // s) * -(-128 // s) for s in (4, 8, 16, 32, 64))
    for training, regions in ((True, 32), (False, 60)):
        outputs = model.train(training)(images, some_targets())
        assert isinstance(outputs, TwoStagePredictions)
        assert outputs.rpn_logits.shape == (2, anchors)
        assert outputs.rpn_deltas.shape == (2, anchors, 4)
        assert outputs.regions.shape == (2, regions, 4)
        assert outputs.logits.shape == (2, regions, 1 + 4)
        assert outputs.deltas.shape == (2, regions, 4, 4)
        assert outputs.exists.all()


def test_without_targets_training_proposes_and_does_not_sample():
    model = tiny_model().train()
    outputs = model(some_images())
    assert outputs.regions.shape[1] > 60
    assert all(loss.isfinite() for loss in model.loss(outputs, some_targets()).values())


@pytest.mark.parametrize("targets", [[no_boxes(), no_boxes()], [some_targets()[0], no_boxes()]])
def test_images_without_boxes_are_learned_from(targets):
    model = tiny_model().train()
    losses = model.loss(model(some_images(), targets), targets)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert losses["loss_cls"] > 0
    if not len(targets[0]["boxes"]):
        assert losses["loss_box"] == losses["loss_rpn_box"] == 0


def test_nothing_proposed_gives_nothing_found():
    model = tiny_model(head={"rpn": {"min_side": 64.0}, "roi": {"width": 32, "size": 3}})
    images = some_images(2, 32, 32)
    assert [len(d["boxes"]) for d in model.postprocess(model(images), [(32, 32)] * 2)] == [0, 0]
    targets = [no_boxes(), no_boxes()]
    model.train()
    losses = model.loss(model(images, targets), targets)
    sum(losses.values()).backward()
    assert losses["loss_cls"] == 0


def test_an_image_is_the_same_alone_and_in_a_batch():
    model = tiny_model().double()
    images, sizes = some_images().double(), [(96, 128), (96, 128)]
    both = model.postprocess(model(images), sizes)
    for i in range(2):
        [alone] = model.postprocess(model(images[i : i + 1]), sizes[:1])
        torch.testing.assert_close(alone, both[i])


def test_prediction_clips_proposals_to_each_image():
    model = tiny_model(postprocess={"score_threshold": 0.0})
    seen = []
    model.register_forward_hook(lambda *args: seen.append(args[-1].regions))
    images = [torch.randint(256, (3, 90, 100), dtype=torch.uint8)] * 2
    for found in detect(model, images):
        assert (found["boxes"] <= torch.tensor([100, 90, 100, 90])).all()
    assert (seen[0] <= torch.tensor([100, 90, 100, 90])).all()
    assert model(torch.zeros(1, 3, 96, 128)).regions.max() > 100


def test_a_seed_repeats_the_samples():
    model = tiny_model().train()
    totals = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs = model(some_images(), some_targets())
        totals.append(sum(model.loss(outputs, some_targets()).values()).item())
    assert totals[0] == totals[1] != totals[2]


def pass_through(conv: nn.Conv2d, value: float) -> None:
    """Kernels that multiply each channel by a value."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    conv.weight.data[range(len(conv.weight)), range(len(conv.weight)), 1, 1] = value


class ReLUs(nn.Module):
    def forward(self, pyramid):
        return [x.relu() for x in pyramid], []


def test_a_pyramid_convolution_that_passes_levels_is_faster_rcnn_on_their_relu():
    model, images = tiny_model("pconv").double(), some_images().double()
    for pconv in model.neck.pconvs:
        assert isinstance(pconv, PyramidConv)
        pass_through(pconv.from_same, 1.0)
        pass_through(pconv.from_finer, 0.0)
        pass_through(pconv.from_coarser, 0.0)
    assert isinstance(model.neck, SEPC)
    ours = model(images)
    model.neck = ReLUs()
    plain = model(images)
    assert ours.sizes == plain.sizes
    assert len(ours.sizes) == 5
    for name in ("rpn_logits", "rpn_deltas", "regions", "logits", "deltas"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("neck", TWO_STAGE_NECKS)
def test_a_saved_model_is_loaded_bit_for_bit(neck, tmp_path):
    model = tiny_model(neck)
    again = create_model(f"local-dir:{save_model(model, tmp_path)}")
    assert isinstance(again, TwoStageDetector)
    assert again.config == model.config
    with torch.no_grad():
        ours, theirs = model(some_images()), again(some_images())
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.regions, theirs.regions)


@pytest.mark.parametrize("unused", [0, 2])
def test_new_classes_keep_what_they_have_learned(unused):
    head = {"roi": {"width": 8, "size": 3, "unused_classes": unused}}
    model = tiny_model(head=head)
    old_cls, old_box = model.roi_head.cls, model.roi_head.box
    nn.init.normal_(old_cls.bias)
    nn.init.normal_(old_box.bias)
    model.reset_classifier(["new", "class_2", "other", "class_0", "more"])
    cls, box = model.roi_head.cls, model.roi_head.box
    assert cls.out_features == 1 + 5 + unused
    assert box.out_features == 4 * 5
    assert torch.equal(cls.weight[[0, 2, 4]], old_cls.weight[[0, 3, 1]])
    assert torch.equal(cls.bias[[0, 2, 4]], old_cls.bias[[0, 3, 1]])
    assert torch.equal(cls.bias[6:], old_cls.bias[5:])
    assert not cls.bias[[1, 3, 5]].any()
    rows, old_rows = box.bias.view(-1, 4), old_box.bias.view(-1, 4)
    assert torch.equal(rows[[1, 3]], old_rows[[2, 0]])
    assert not rows[[0, 2, 4]].any()
    outputs = model(some_images())
    assert outputs.logits.shape[2] == 1 + 5 + unused
    [found, _] = model.postprocess(outputs, [(96, 128)] * 2)
    assert (found["labels"] < 5).all()


def test_unused_classes_lower_the_others_and_are_never_found():
    model = tiny_model(head={"roi": {"width": 8, "size": 3, "unused_classes": 1}})
    images, size = some_images(1), [(96, 128)]
    nn.init.constant_(model.roi_head.cls.bias, 0)
    model.roi_head.cls.bias.data[1] = 3  # the first class
    [before] = model.postprocess(model(images), size)
    assert len(before["scores"])
    model.roi_head.cls.bias.data[-1] = 3
    [after] = model.postprocess(model(images), size)
    assert (after["labels"] < 4).all()
    assert after["scores"].max() < 0.6 * before["scores"].max()


def test_a_dense_method_and_a_two_stage_head_do_not_fit():
    for name, head in (("fsaf_r18_fpn", "two_stage"), ("fasterrcnn_r18_fpn", "dense")):
        with pytest.raises(ConfigError, match=f"head.type is '{head}', but "):
            override(model_config(name), {"head": {"type": head}})


@pytest.mark.parametrize("changes", [{"head_deform": True}, {"padding": 0}])
def test_without_branches_a_neck_has_none_of_their_entries(changes):
    with pytest.raises(ConfigError, match="need branches, but branches is false"):
        override(model_config("fasterrcnn_r18_pconv"), {"neck": changes})


def test_info_counts_a_two_stage_model():
    info = model_info("fasterrcnn_r18_pconv")
    assert info.neck == "pconv"
    assert info.gmacs > model_info("fasterrcnn_r18_fpn").gmacs > 50


def test_p6_is_every_second_cell_of_p5_and_norms_stand_in_for_biases():
    model = tiny_model("fpn", fpn={"norm": True})
    pyramid = model.fpn(model.backbone(some_images(1, 96, 160)))
    assert torch.equal(pyramid[4], pyramid[3][:, :, ::2, ::2])
    assert model.fpn.lateral[0].bias is None
    assert isinstance(model.fpn.output_norms[3], nn.BatchNorm2d)


def test_the_epsilon_of_the_norms_is_an_entry():
    model = tiny_model(backbone={"norm_eps": 0.0})
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {0.0}
    assert model.neck.pconvs[0].norm is None


def gradients_of_share(rank):
    """Gradients of one image of the batch, where all anchors and regions are taken."""
    from torch.nn.parallel import DistributedDataParallel

    model = tiny_model("fpn", method={"rpn_samples": 10**6, "rpn_positive_fraction": 1.0})
    model.train().backbone.eval()
    wrapped = model if rank is None else DistributedDataParallel(model)
    share = slice(None) if rank is None else slice(rank, rank + 1)
    targets = some_targets()[share]
    # The regions are those of the second head's own proposals, all of them.
    outputs = wrapped(some_images()[share])
    sum(model.loss(outputs, targets).values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def gradients_here():
    from accelerate import PartialState

    state = PartialState(cpu=True)
    return gradients_of_share(state.process_index)


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one():
    whole = gradients_of_share(None)
    processes = ProcessPair()
    try:
        found = processes(gradients_here)
    finally:
        processes.close()
    for gradients in found:
        for name, expected in whole.items():
            torch.testing.assert_close(gradients[name], expected, rtol=1e-3, atol=1e-6)
