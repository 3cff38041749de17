"""The region proposal network (Ren et al. 2015)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sepc_zoo.config import RPNHead
from sepc_zoo.models.heads.dense import join_levels
from sepc_zoo.models.init import init_conv
from sepc_zoo.models.recompute import run
from sepc_zoo.ops.boxes import clip_boxes
from sepc_zoo.ops.devices import to_device
from sepc_zoo.ops.nms import best_of_images, suppress, top_of_levels
from sepc_zoo.outputs import Anchors


class RPN(nn.Module):
    """Scores and boxes of objects of any class, by convolutions that all levels share.

    Args:
        channels: channels of every level.
        num_anchors: anchors of a cell.

    Attributes:
        grad_checkpointing: recompute the convolutions in the backward pass.
    """

    grad_checkpointing = False

    def __init__(self, channels: int, num_anchors: int, config: RPNHead) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for _ in range(config.convs):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*layers)
        self.cls = nn.Conv2d(channels, num_anchors, 1)
        self.box = nn.Conv2d(channels, num_anchors * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)

    def forward(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``(N, A)`` and deltas ``(N, A, 4)`` of all anchors."""
        pyramid = [run(self.convs, x, recompute=self.grad_checkpointing) for x in pyramid]
        logits = join_levels([self.cls(x) for x in pyramid], 1).squeeze(2)
        return logits, join_levels([self.box(x) for x in pyramid], 4)

    @torch.no_grad()
    def propose(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Anchors,
        decode: Callable[[Tensor, Tensor], Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Find the regions with the highest scores after suppression in each level.

        Args:
            decode: function from anchors and deltas to boxes, all ``(N, C, 4)``.
            image_sizes: height and width of each image inside the batch; regions are clipped to it.

        Returns:
            ``(N, P, 4)`` by falling score; an image with fewer has regions without area.
        """
        config, images, num_levels = self.config, len(logits), len(anchors.lengths)
        candidates, limit = config.candidates_per_level, config.max_proposals
        if self.training:
            candidates, limit = config.train_candidates_per_level, config.train_max_proposals
        scores, index, level = top_of_levels(logits, anchors.lengths, candidates)  # N, C
        boxes = decode(anchors.boxes[index], deltas.gather(1, index[..., None].expand(-1, -1, 4)))
        boxes = clip_boxes(boxes, to_device(torch.tensor(image_sizes), boxes.device))

        # On a GPU the next lines wait.
        large = (boxes[..., 2:] - boxes[..., :2] >= config.min_side).all(dim=-1)
        group = level + num_levels * torch.arange(images, device=level.device)[:, None]
        boxes, scores, group = boxes[large], scores[large], group[large]
        keep = suppress(boxes, scores, group, config.iou_threshold)
        found = best_of_images(keep, group // num_levels, images, limit)
        return pad_sequence([boxes[kept] for kept in found], batch_first=True)
