"""The regions that image-labelled images learn from: their best proposals and, if wanted, a box of the whole image."""

from collections.abc import Sequence

import torch

from detectron2.structures import Boxes, Instances

__all__ = ["top_proposals"]


@torch.no_grad()
def top_proposals(
    proposals: Sequence[Instances], count: int, image_box_size: float | None, whole_at_least: float | None = None
) -> list[Instances]:
    """The first ``count`` proposals of each image, clipped to it, and a centred image box after them.

    Args:
        proposals: ``proposal_boxes`` and ``objectness_logits`` of each image, best first.
        image_box_size: side of the image box in sides of the image; None for no such box.
        whole_at_least: from this size on, the box is exactly the image.
    """
    result = []
    for each in proposals:
        top = each[:count]
        boxes = Boxes(top.proposal_boxes.tensor.detach().clone())
        boxes.clip(each.image_size)
        objectness = top.objectness_logits.detach()
        if image_box_size is not None:
            height, width = each.image_size
            size = image_box_size
            if whole_at_least is not None and size >= whole_at_least:
                size = 1.0
            low, high = (1.0 - size) / 2.0, (1.0 + size) / 2.0
            image_box = boxes.tensor.new_tensor([[width * low, height * low, width * high, height * high]])
            boxes = Boxes(torch.cat((boxes.tensor, image_box)))
            objectness = torch.cat((objectness, objectness.new_ones(1)))
        result.append(Instances(each.image_size, proposal_boxes=boxes, objectness_logits=objectness))
    return result
