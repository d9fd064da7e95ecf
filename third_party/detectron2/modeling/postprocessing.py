"""From the network's image size to the size that the caller asks for."""

import torch.nn.functional as F
from torch import Tensor

from detectron2.structures.instances import Instances
from detectron2.structures.masks import ROIMasks


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Instances in an image of another size: boxes scaled and clipped, empty ones dropped, masks pasted.

    The `Boxes` of ``results`` are shared with the outcome and changed in place: use ``results`` no further.

    Args:
        results: with ``pred_boxes`` or ``proposal_boxes``; ``pred_masks`` as `ROIMasks` or probabilities (R, 1, M, M),
            and ``pred_keypoints`` (R, K, 3), if any.
        mask_threshold: probability from which a pixel belongs to a mask.
    Returns:
        Instances of size (output_height, output_width); ``pred_masks`` is bool (R, output_height, output_width).
    """
    height, width = results.image_size
    scale_x, scale_y = output_width / width, output_height / height
    results = Instances((output_height, output_width), **results.get_fields())

    field = next((name for name in ("pred_boxes", "proposal_boxes") if results.has(name)), None)
    assert field is not None, "detector_postprocess needs instances with pred_boxes or proposal_boxes"
    boxes = results.get(field)
    boxes.scale(scale_x, scale_y)
    boxes.clip(results.image_size)
    results = results[boxes.nonempty()]

    if results.has("pred_masks"):
        masks = results.pred_masks
        if not isinstance(masks, ROIMasks):
            masks = ROIMasks(masks[:, 0, :, :])
        results.pred_masks = masks.to_bitmasks(results.pred_boxes, output_height, output_width, mask_threshold).tensor
    if results.has("pred_keypoints"):
        results.pred_keypoints[:, :, 0] *= scale_x
        results.pred_keypoints[:, :, 1] *= scale_y
    return results


def sem_seg_postprocess(result: Tensor, img_size: tuple[int, int], output_height: int, output_width: int) -> Tensor:
    """Per-pixel scores of an image in another size.

    Args:
        result: (C, h, w) scores of the padded image.
        img_size: (height, width) of the image without padding, which is cropped away first.
    Returns:
        (C, output_height, output_width), bilinearly interpolated.
    """
    result = result[None, :, : img_size[0], : img_size[1]]
    return F.interpolate(result, size=(output_height, output_width), mode="bilinear", align_corners=False)[0]
