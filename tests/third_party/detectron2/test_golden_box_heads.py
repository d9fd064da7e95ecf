"""Detections, predictor, losses, box head and proposals against recorded numbers of detectron2."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    find_top_rpn_proposals,
)
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tests.golden.fill import fill
from tests.golden_files import Golden

# What the names of recorded losses mean, beyond class-specific boxes, softmax and L1.
OPTIONS = {
    "softmax": {},
    "softmax_agnostic": {"cls_agnostic_bbox_reg": True},
    "sigmoid": {"use_sigmoid_ce": True},
    "giou": {"box_reg_loss_type": "giou", "loss_weight": {"loss_box_reg": 2.0}},
    "beta": {"smooth_l1_beta": 0.5},
}


class Numbers:
    """Recorded arrays as tensors, and the comparison with them."""

    def __init__(self, golden: Golden) -> None:
        self.golden, self.meta = golden, golden.meta
        self.limit = float(re.match(r"[\d.e-]+", golden.meta["tolerance"])[0])
        self.image_size = tuple(golden.meta["image_size"])

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.golden.arrays[name]))

    def images(self, pattern: str) -> list[int]:
        """Indices of the images that have an array ``pattern``, in which ``{}`` stands for them."""
        index = re.escape(pattern).replace(r"\{\}", r"(\d+)")
        return sorted(int(match[1]) for name in self.golden.arrays if (match := re.fullmatch(index, name)))

    def check(self, found: Tensor, name: str) -> None:
        expected = self[name]
        limit = self.limit if expected.is_floating_point() else 0
        assert_close(found, expected, rtol=limit, atol=limit, msg=lambda text: f"{name}: {text}")


@pytest.mark.golden("d2_box_heads")
def test_d2_box_heads(golden: Golden) -> None:
    numbers = Numbers(golden)
    check_detections(numbers)
    check_predictor(numbers)
    check_box_head(numbers)
    check_proposals(numbers)
    check_appended_ground_truth(numbers)


def check_detections(numbers: Numbers) -> None:
    names = [key.removeprefix("det_") for key in numbers.meta if key.startswith("det_")]
    images = numbers.images("det/img{}/scores")
    assert names and images
    for name in names:
        settings = numbers.meta[f"det_{name}"]
        kind = "per_class" if "per_class" in name else "agnostic"
        detections, rows = fast_rcnn_inference(
            [numbers[f"det/img{i}/boxes_{kind}"] for i in images],
            [numbers[f"det/img{i}/scores"] for i in images],
            [numbers.image_size] * len(images),
            settings["score_thresh"],
            settings["nms_thresh"],
            settings["topk"],
        )
        assert [len(each) for each in detections] == settings["counts"]
        for i, found, found_rows in zip(images, detections, rows, strict=True):
            assert found.image_size == numbers.image_size
            numbers.check(found.pred_boxes.tensor, f"det/img{i}/{name}/boxes")
            numbers.check(found.scores, f"det/img{i}/{name}/scores")
            numbers.check(found.pred_classes, f"det/img{i}/{name}/classes")
            numbers.check(found_rows, f"det/img{i}/{name}/rows")


def recipe(text: str) -> tuple[int, tuple[float, ...], list[int], list[int], list[int]]:
    """Inputs and weights of the predictor; shape, convolutions and layers of the box head, from the sentence."""
    inputs, weights = re.search(r"\((\d+) inputs, K classes, weights \(([\d., ]+)\)", text).groups()
    head = re.search(r"FastRCNNConvFCHead\(([\dx]+), conv_dims \[([\d, ]*)\], fc_dims \[([\d, ]*)\]", text)
    shape, convs, fcs = ([int(number) for number in re.findall(r"\d+", part)] for part in head.groups())
    return int(inputs), tuple(float(weight) for weight in weights.split(",")), shape, convs, fcs


def predictor(numbers: Numbers, **options: Any) -> FastRCNNOutputLayers:
    inputs, weights, *_ = recipe(numbers.meta["modules"])
    num_classes = numbers.meta["num_classes"]
    layers = FastRCNNOutputLayers(
        ShapeSpec(channels=inputs), box2box_transform=Box2BoxTransform(weights), num_classes=num_classes, **options
    )
    fill(layers)
    return layers


def regions(numbers: Numbers) -> list[Instances]:
    images = numbers.images("out/prop{}")
    boxes = [numbers[f"out/prop{i}"] for i in images]
    classes = numbers["out/gt_classes"].split([len(each) for each in boxes])
    return [
        Instances(
            numbers.image_size,
            proposal_boxes=Boxes(each),
            gt_classes=image_classes,
            gt_boxes=Boxes(numbers[f"out/gt{i}"]),
        )
        for i, each, image_classes in zip(images, boxes, classes, strict=True)
    ]


def check_predictor(numbers: Numbers) -> None:
    x, proposals = numbers["out/x"], regions(numbers)
    for name, expected in numbers.meta["out_losses"].items():
        further = numbers.meta.get("out_options", {})
        assert name in OPTIONS or name in further, f"out_losses {name}: give its options in out_options"
        options = OPTIONS.get(name, {}) | further.get(name, {})
        layers = predictor(numbers, **options)
        predictions = layers(x)
        with EventStorage() as storage:
            losses = layers.losses(predictions, proposals)
        found = {key: loss.item() for key, loss in losses.items()}
        assert found == pytest.approx(expected, rel=numbers.limit, abs=numbers.limit), name
        stats = {key: value for key, (value, _) in storage.latest().items()}
        assert stats == pytest.approx(numbers.meta["out_stats"], abs=1e-6)
        if f"out/{name}/logits" in numbers.golden.arrays:
            with torch.no_grad():
                numbers.check(predictions[0].detach(), f"out/{name}/logits")
                numbers.check(predictions[1].detach(), f"out/{name}/deltas")
                per_image = {
                    "pred_boxes": layers.predict_boxes(predictions, proposals),
                    "probs": layers.predict_probs(predictions, proposals),
                    "boxes_for_gt": layers.predict_boxes_for_gt_classes(predictions, proposals),
                }
                for key, values in per_image.items():
                    for i in numbers.images(f"out/{name}/{key}{{}}"):
                        numbers.check(values[i], f"out/{name}/{key}{i}")
    layers = predictor(numbers, cls_agnostic_bbox_reg=True)
    with EventStorage() as storage:
        losses = layers.losses(layers(x[:0]), [])
    assert {key: loss.item() for key, loss in losses.items()} == numbers.meta["out_losses_empty"]
    assert not storage.latest()


def check_box_head(numbers: Numbers) -> None:
    _, _, (channels, height, width), conv_dims, fc_dims = recipe(numbers.meta["modules"])
    shape = ShapeSpec(channels=channels, height=height, width=width)
    head = FastRCNNConvFCHead(shape, conv_dims=conv_dims, fc_dims=fc_dims)
    found = [[name, list(value.shape)] for name, value in head.state_dict().items()]
    assert found == numbers.meta["box_head_entries"]
    fill(head)
    with torch.no_grad():
        numbers.check(head(numbers["boxhead/x"]), "boxhead/y")
    assert head.output_shape == ShapeSpec(channels=fc_dims[-1])


def check_proposals(numbers: Numbers) -> None:
    text = numbers.meta["rpn"]
    nms, before, after, side = (
        float(re.search(rf"{key} ([\d.]+)", text)[1]) for key in ("^nms", "pre-nms", "post-nms", "min side")
    )
    levels = numbers.images("rpn/l{}/boxes")
    boxes = [numbers[f"rpn/l{level}/boxes"] for level in levels]
    logits = [numbers[f"rpn/l{level}/logits"] for level in levels]
    found = find_top_rpn_proposals(
        boxes,
        logits,
        [numbers.image_size] * len(boxes[0]),
        nms_thresh=nms,
        pre_nms_topk=int(before),
        post_nms_topk=int(after),
        min_box_size=side,
        training="eval" not in text,
    )
    assert [len(each) for each in found] == numbers.meta["rpn_counts"]
    for i, each in enumerate(found):
        numbers.check(each.proposal_boxes.tensor, f"rpn/out{i}/boxes")
        numbers.check(each.objectness_logits, f"rpn/out{i}/logits")


def check_appended_ground_truth(numbers: Numbers) -> None:
    size = numbers.image_size
    count = numbers.meta["appended_count"]
    truth = Instances(size, gt_boxes=Boxes(torch.rand(count, 4)), gt_classes=torch.arange(count))
    proposals = Instances(size, proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0))
    (found,) = add_ground_truth_to_proposals([truth], [proposals])
    assert found.objectness_logits.tolist() == pytest.approx([numbers.meta["appended_gt_logit"]] * count)
    assert_close(found.proposal_boxes.tensor, truth.gt_boxes.tensor)
