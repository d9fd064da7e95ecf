"""Box algebra, matching, NMS, anchors, box losses and small layers against recorded numbers of detectron2."""

import ast
import re

import numpy as np
import pytest
import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.testing import assert_close

from detectron2.layers import Conv2d, DeformConv, FrozenBatchNorm2d, batched_nms, cross_entropy, get_norm, nms
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, BoxMode, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection
from tests.golden.fill import fill
from tests.golden_files import Golden


class Numbers:
    """Recorded arrays as tensors, and the comparison with them at the file's tolerances."""

    def __init__(self, golden: Golden) -> None:
        self.golden = golden
        self.meta = golden.meta
        text = golden.meta["tolerance"]
        self.absolute = float(re.search(r"([\d.e+-]+) absolute", text).group(1))
        self.relative = float(re.search(r"([\d.e+-]+) relative", text).group(1))

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.golden.arrays[name]))

    def names(self, pattern: str) -> list[re.Match]:
        found = [match for name in self.golden.arrays if (match := re.fullmatch(pattern, name))]
        assert found, f"{self.golden.path} holds no array {pattern}"
        return found

    def check(self, actual: Tensor, name: str, absolute: bool = False) -> None:
        expected = self[name]
        exact = not expected.is_floating_point()
        # Differences of coordinates near 0 have no meaningful relative error: float32 keeps 7 digits of the largest.
        floor = self.absolute if absolute or exact else self.relative * float(expected.abs().amax().clamp(min=1)) / 50
        rtol = 0 if absolute or exact else self.relative
        assert_close(actual, expected, rtol=rtol, atol=0 if exact else floor, msg=lambda text: f"{name}: {text}")


@pytest.mark.golden("d2_boxes_layers")
def test_boxes_and_layers_match_reference(golden: Golden) -> None:
    numbers = Numbers(golden)
    check_encoding(numbers)
    check_overlaps(numbers)
    check_box_methods(numbers)
    check_matchers(numbers)
    check_losses(numbers)
    check_nms(numbers)
    check_anchors(numbers)
    check_norms(numbers)
    check_convolutions(numbers)


def check_encoding(numbers: Numbers) -> None:
    source, target = numbers["src"], numbers["tgt"]
    for name, weights in numbers.meta["encode_weights"].items():
        transform = Box2BoxTransform(tuple(weights))
        deltas = transform.get_deltas(source, target)
        numbers.check(deltas, f"encode/{name}")
        numbers.check(transform.apply_deltas(deltas, source), f"decode_roundtrip/{name}")
    for match in numbers.names(r"decode_k/(\w+)"):
        transform = Box2BoxTransform(tuple(numbers.meta["encode_weights"][match[1]]))
        numbers.check(transform.apply_deltas(numbers["deltas_k"], source), match[0])


def check_overlaps(numbers: Numbers) -> None:
    first, second = Boxes(numbers["iou/a"]), Boxes(numbers["iou/b"])
    numbers.check(pairwise_intersection(first, second), "iou/intersection")
    numbers.check(pairwise_iou(first, second), "iou/iou", absolute=True)
    numbers.check(pairwise_ioa(first, second), "iou/ioa", absolute=True)
    pairs = len(numbers["iou/matched"])
    numbers.check(matched_pairwise_iou(first[:pairs], second[:pairs]), "iou/matched", absolute=True)
    numbers.check(pairwise_point_box_distance(numbers["pts"], second), "point_box_distance")


def check_box_methods(numbers: Numbers) -> None:
    meta = numbers.meta
    boxes = Boxes(numbers["ops/in"])
    numbers.check(boxes.area(), "ops/area")
    numbers.check(boxes.get_centers(), "ops/centers")
    for match in numbers.names(r"ops/nonempty(?:_thr([\d.]+))?"):
        numbers.check(boxes.nonempty(float(match[1] or 0)), match[0])
    for match in numbers.names(r"ops/inside(?:_thr([\d.]+))?"):
        numbers.check(boxes.inside_box(tuple(meta["inside_size"]), float(match[1] or 0)), match[0])
    clipped = boxes.clone()
    clipped.clip(tuple(meta["clip_size"]))
    numbers.check(clipped.tensor, "ops/clipped")
    scaled = boxes.clone()
    scaled.scale(*meta["scale"])
    numbers.check(scaled.tensor, "ops/scaled")
    corners, sized = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
    numbers.check(BoxMode.convert(numbers["iou/a"], corners, sized), "mode/xyxy_to_xywh")
    numbers.check(BoxMode.convert(numbers["iou/b"], sized, corners), "mode/xywh_to_xyxy")


def check_matchers(numbers: Numbers) -> None:
    recipes = numbers.meta["matchers"]
    matchers = {}
    for name, recipe in recipes.items():
        bins = re.match(r"(\[.*?\]) -> (\[.*?\])", recipe)
        if bins:
            thresholds, labels = (ast.literal_eval(part) for part in bins.groups())
            matchers[name] = Matcher(thresholds, labels, allow_low_quality_matches="low quality on" in recipe)
    for name, recipe in recipes.items():
        quality = numbers["matcher/iou"]
        empty = re.match(r"(\d+)x(\d+) matrix with the (\w+) thresholds", recipe)
        if empty:
            quality = torch.zeros(int(empty[1]), int(empty[2]))
        indices, labels = matchers[empty[3] if empty else name](quality)
        numbers.check(indices, f"matcher/{name}/idx")
        numbers.check(labels, f"matcher/{name}/label")


def check_losses(numbers: Numbers) -> None:
    weights = ast.literal_eval(re.search(r"weights (\(.*?\))", numbers.meta["dense_loss"]).group(1))
    foreground = numbers["loss/fg"]
    for match in numbers.names(r"loss/dense_(\w+)_beta([\d.]+)"):
        loss = _dense_box_regression_loss(
            [Boxes(numbers["src"])],
            Box2BoxTransform(weights),
            [numbers["loss/pred_deltas"]],
            [numbers["tgt"]] * len(foreground),
            foreground,
            box_reg_loss_type=match[1],
            smooth_l1_beta=float(match[2]),
        )
        numbers.check(loss, match[0])
    focal = sigmoid_focal_loss(
        numbers["loss/focal_logits"], numbers["loss/focal_targets"], alpha=0.25, gamma=2, reduction="sum"
    )
    numbers.check(focal, "loss/focal")
    numbers.check(cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)), "layers/ce_empty")


def check_nms(numbers: Numbers) -> None:
    boxes, scores, groups = (numbers[f"nms/{name}"] for name in ("boxes", "scores", "idx"))
    for match in numbers.names(r"nms/(batched_)?keep_(\d)(\d+)"):
        threshold = float(f"{match[2]}.{match[3]}")  # "05" is 0.5
        kept = batched_nms(boxes, scores, groups, threshold) if match[1] else nms(boxes, scores, threshold)
        numbers.check(kept, match[0])


def check_anchors(numbers: Numbers) -> None:
    grids: list[tuple[int, int]] = []
    for name, recipe in numbers.meta["anchors"].items():
        parts = dict(re.findall(r"(sizes|ratios|strides) (\[[\d.,\[\]]*\])", recipe))
        found = re.findall(r"(\d+)x(\d+)", recipe)
        grids = [(int(height), int(width)) for height, width in found] or grids  # "same grids"
        generator = DefaultAnchorGenerator(
            sizes=ast.literal_eval(parts["sizes"]),
            aspect_ratios=ast.literal_eval(parts["ratios"]),
            strides=ast.literal_eval(parts["strides"]),
            offset=float(re.search(r"offset ([\d.]+)", recipe).group(1)),
        )
        for level, anchors in enumerate(generator([torch.zeros(1, 1, *grid) for grid in grids])):
            numbers.check(anchors.tensor, f"anchors/{name}/l{level}")


def check_norms(numbers: Numbers) -> None:
    def check(actual: Tensor, name: str) -> None:
        numbers.check(actual[:, : numbers[name].shape[1]], name)

    x = numbers["layers/x_full"]
    channels = x.shape[1]
    fresh = FrozenBatchNorm2d(channels)
    assert fresh.running_var[0].item() == pytest.approx(numbers.meta["frozenbn_fresh_running_var"], abs=1e-8)
    frozen = filled(FrozenBatchNorm2d(channels))
    check(frozen(x), "layers/frozenbn")
    learned = x.clone().requires_grad_()
    (frozen(learned) ** 2).sum().backward()
    check(learned.grad, "layers/frozenbn_grad")

    model = filled(
        nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels, eps=numbers.meta["converted_eps"]))
    )
    converted = FrozenBatchNorm2d.convert_frozen_batchnorm(model).train()
    assert converted[1].eps == numbers.meta["converted_eps"]
    entries = [[name, list(value.shape)] for name, value in converted.state_dict().items()]
    assert entries == numbers.meta["converted_entries"]
    check(converted(x).detach(), "layers/converted_frozenbn")
    for name in ("GN", "LN"):
        check(filled(get_norm(name, channels))(x).detach(), f"layers/{name.lower()}")


def check_convolutions(numbers: Numbers) -> None:
    x, recipe = numbers["layers/x_full"], numbers.meta["layer_recipe"]
    inputs, outputs, kernel, stride, padding = map(
        int, re.search(r" Conv2d\((\d+),(\d+),(\d+),stride (\d+),pad (\d+),no bias", recipe).groups()
    )
    conv = Conv2d(
        inputs,
        outputs,
        kernel,
        stride=stride,
        padding=padding,
        bias=False,
        norm=FrozenBatchNorm2d(outputs),
        activation=torch.relu,
    )
    numbers.check(filled(conv)(x).detach(), "layers/conv_norm_act")
    inputs, outputs, kernel, padding = map(
        int, re.search(r"DeformConv\((\d+),(\d+),(\d+),pad (\d+)\)", recipe).groups()
    )
    deform = filled(DeformConv(inputs, outputs, kernel, padding=padding))
    numbers.check(deform(x, numbers["layers/deform_offset"]).detach(), "layers/deform")


def filled(module: nn.Module) -> nn.Module:
    fill(module)
    return module
