"""Mask head, mask targets, pasting and post-processing against recorded numbers of detectron2."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detectron2.layers import ShapeSpec, paste_masks_in_image
from detectron2.modeling import detector_postprocess
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks, polygons_to_bitmask
from detectron2.utils.events import EventStorage
from tests.golden.fill import fill
from tests.golden_files import Golden


class Numbers:
    """Recorded arrays as tensors, and the comparison with them."""

    def __init__(self, golden: Golden) -> None:
        self.golden, self.meta = golden, golden.meta
        text = golden.meta["tolerance"]
        self.limit = float(re.search(r"float ([\d.e-]+)", text)[1])
        self.pixels = int(re.search(r"<=(\d+) pixels", text)[1])
        self.image_size = tuple(golden.meta["image_size"])
        self.polygons = PolygonMasks(
            [[np.array(polygon) for polygon in polygons] for polygons in golden.meta["polygons"]]
        )

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.golden.arrays[name]))

    def bits(self, name: str, height: int, width: int) -> Tensor:
        """(N, height, width) bool of maps packed row by row; a single packed map gives N = 1."""
        packed = np.atleast_2d(self.golden.arrays[name])
        unpacked = np.unpackbits(packed, axis=1)[:, : height * width]
        return torch.from_numpy(unpacked.reshape(-1, height, width)).bool()

    def check(self, found: Tensor, name: str) -> None:
        expected = self[name]
        limit = self.limit if expected.is_floating_point() else 0
        found = found.detach().to(expected.dtype)
        assert_close(found, expected, rtol=limit, atol=limit, msg=lambda text: f"{name}: {text}")

    def check_bits(self, found: Tensor, name: str, exact: bool = False) -> None:
        differing = (found != self.bits(name, *found.shape[-2:])).flatten(1).sum(dim=1)
        assert differing.max() <= (0 if exact else self.pixels), f"{name}: {differing.tolist()} pixels differ"


@pytest.mark.golden("d2_masks")
def test_d2_masks(golden: Golden) -> None:
    numbers = Numbers(golden)
    check_head(numbers)
    check_targets(numbers)
    check_degenerate_polygons(numbers)
    check_pasting(numbers)
    check_postprocessing(numbers)
    check_images(numbers)


def heads(numbers: Numbers) -> dict[str, MaskRCNNConvUpsampleHead]:
    """Those of the sentence ``MaskRCNNConvUpsampleHead(8x14x14): per class = num_classes K, conv_dims [8,8,8]; …``."""
    text = numbers.meta["modules"]
    channels, height, width = (int(number) for number in re.search(r"\((\d+)x(\d+)x(\d+)\)", text).groups())
    found = {}
    for name, pattern in {"per_class": "per class", "agnostic": "agnostic"}.items():
        dims = re.search(rf"{pattern} = [^\[]*\[([\d, ]+)\]", text)[1]
        head = MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=channels, height=height, width=width),
            num_classes=numbers.meta["num_classes"] if name == "per_class" else 1,
            conv_dims=[int(dim) for dim in dims.split(",")],
        )
        fill(head)
        found[name] = head
    return found


def check_head(numbers: Numbers) -> None:
    models = heads(numbers)
    entries = [[name, list(value.shape)] for name, value in models["per_class"].state_dict().items()]
    assert entries == numbers.meta["mask_head_entries"]
    x, classes = numbers["head/x"], numbers["infer/classes"]
    logits = {name: head.layers(x) for name, head in models.items()}
    numbers.check(logits["per_class"][:, 0], "head/logits_class0")
    numbers.check(logits["per_class"][:, -1], "head/logits_last")
    numbers.check(logits["agnostic"], "head/agnostic_logits")
    for name, head_logits in logits.items():
        images = [Instances(numbers.image_size, pred_classes=part) for part in classes.tensor_split(2)]
        mask_rcnn_inference(head_logits, images)
        numbers.check(torch.cat([image.pred_masks for image in images]), f"infer/{name}")
        (whole,) = models[name].eval()(x, [Instances(numbers.image_size, pred_classes=classes)])
        numbers.check(whole.pred_masks, f"infer/{name}")

        regions = Instances(
            numbers.image_size,
            proposal_boxes=Boxes(numbers["loss/boxes"]),
            gt_classes=classes,
            gt_masks=numbers.polygons,
        )
        with EventStorage() as storage:
            loss = mask_rcnn_loss(head_logits, [regions])
        assert loss.item() == pytest.approx(numbers.meta["mask_loss"][name], abs=numbers.limit)
        stats = numbers.meta.get(f"mask_stats_{name}")
        if stats:
            found = {key: value for key, (value, _) in storage.latest().items()}
            assert found == pytest.approx(stats, abs=numbers.limit)


def check_targets(numbers: Numbers) -> None:
    boxes, polygons = numbers["loss/boxes"], numbers.polygons
    masks = BitMasks(numbers.bits("bit/masks", *numbers.image_size))
    for kind, source in {"poly": polygons, "bit": masks}.items():
        sizes = [int(match[1]) for name in numbers.golden.arrays if (match := re.fullmatch(rf"{kind}/crop(\d+)", name))]
        assert sizes
        for size in sizes:
            numbers.check_bits(source.crop_and_resize(boxes, size), f"{kind}/crop{size}", exact=kind == "poly")
        numbers.check(source.get_bounding_boxes().tensor, f"{kind}/boxes")
    numbers.check(polygons.area(), "poly/area")
    numbers.check(masks.nonempty(), "bit/nonempty")
    assert torch.equal(BitMasks.from_polygon_masks(polygons, *numbers.image_size).tensor, masks.tensor)


def check_degenerate_polygons(numbers: Numbers) -> None:
    polygons = [[np.array(polygon)] for polygon in numbers.meta["degenerate_polygons"]]
    masks = PolygonMasks(polygons)
    expected = numbers["poly/degenerate_crop14"]
    assert torch.equal(masks.crop_and_resize(numbers["poly/degenerate_boxes"], expected.shape[-1]), expected)
    bitmaps = numbers["poly/degenerate_bitmask"]
    found = np.stack([polygons_to_bitmask(each, *bitmaps.shape[1:]) for each in polygons])
    assert np.array_equal(found, bitmaps.numpy())
    numbers.check(masks.get_bounding_boxes().tensor, "poly/degenerate_bbox")


def check_pasting(numbers: Numbers) -> None:
    masks, boxes = numbers["infer/agnostic"][:, 0], numbers["paste/boxes"]
    pasted = paste_masks_in_image(masks, Boxes(boxes), numbers.image_size, threshold=0.5)
    numbers.check_bits(pasted, "paste/bits_05")
    assert (pasted.flatten(1).sum(dim=1) - numbers["paste/area_05"]).abs().max() <= numbers.pixels
    grey = paste_masks_in_image(masks, Boxes(boxes), numbers.image_size, threshold=-1)
    expected = numbers["paste/u8_mask0_mask1"]
    difference = (grey[: len(expected)].int() - expected.int()).abs()
    assert difference.max() <= 1, "of 255 grey levels, which are cut, not rounded"
    none = paste_masks_in_image(masks[:0], Boxes(boxes[:0]), numbers.image_size)
    assert none.shape == (0, *numbers.image_size)
    assert [str(each.dtype) for each in (pasted, grey, none)] == numbers.meta["paste_dtypes"]


def check_postprocessing(numbers: Numbers) -> None:
    boxes = Boxes(numbers["post/in_boxes"].clone())
    results = Instances(
        numbers.image_size,
        pred_boxes=boxes,
        scores=torch.arange(len(boxes), dtype=torch.float32),
        pred_masks=numbers["infer/agnostic"],
    )
    found = detector_postprocess(results, *numbers.meta["post_size"])
    assert list(found.image_size) == numbers.meta["post_size"]
    numbers.check(found.pred_boxes.tensor, "post/boxes")
    numbers.check(found.scores, "post/scores")
    numbers.check_bits(found.pred_masks[:1], "post/mask0")
    assert (found.pred_masks.flatten(1).sum(dim=1) - numbers["post/mask_area"]).abs().max() <= numbers.pixels
    assert (not torch.equal(boxes.tensor, numbers["post/in_boxes"])) == numbers.meta["post_input_boxes_mutated"]

    size, _, output = re.findall(r"\(?(\d+)[,x](\d+)\)?", numbers.meta["sem"])
    scores = sem_seg_postprocess(numbers["sem/in"], tuple(int(side) for side in size), *(int(s) for s in output))
    numbers.check(scores, "sem/out")


def check_images(numbers: Numbers) -> None:
    sizes, expected = numbers.meta["imagelist"]["sizes"], numbers["imagelist/tensor"]
    images = [expected[i, :, :h, :w] for i, (h, w) in enumerate(sizes)]
    divisor = math.gcd(*expected.shape[-2:])
    height, width = expected.shape[-2:]
    padding = (expected[i, 0, -1, -1] for i, (h, w) in enumerate(sizes) if h < height or w < width)
    pad_value = float(next(padding, 0.0))
    batch = ImageList.from_tensors(images, divisor, pad_value=pad_value)
    assert torch.equal(batch.tensor, expected)
    assert [list(size) for size in batch.image_sizes] == sizes
    square = numbers.meta["imagelist"]["square"]
    padded = ImageList.from_tensors(
        images[:1], divisor, padding_constraints={"square_size": square[-1], "size_divisibility": 0}
    )
    assert list(padded.tensor.shape) == square
