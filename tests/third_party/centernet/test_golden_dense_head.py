"""The dense head, its targets, losses and decoding against recorded numbers of CenterNet2."""

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from centernet.modeling.dense_heads.centernet import CenterNet
from centernet.modeling.dense_heads.centernet_head import CenterNetHead
from centernet.modeling.dense_heads.locations import flatten_levels, level_locations
from centernet.modeling.layers.heatmap_focal_loss import binary_heatmap_focal_loss, heatmap_focal_loss
from centernet.modeling.layers.iou_loss import IOULoss
from detectron2.structures import Boxes, ImageList, Instances
from tests.golden_files import Golden
from tests.golden_recipes import close, close_detections, close_in_brief, fill_by_rules, tolerance


@pytest.mark.golden("centernet_head")
def test_centernet_head(golden: Golden) -> None:
    for name, case in golden.meta["cases"].items():
        head = CenterNetHead(**case["args"])
        entries = {key: list(value.shape) for key, value in head.state_dict().items()}
        assert list(entries.items()) == [tuple(entry) for entry in case["entries"]], name
        fill_by_rules(head, case)
        generator = np.random.RandomState(case["seed"])
        channels = case["args"]["in_channels"]
        features = [
            torch.from_numpy(generator.standard_normal((case["N"], channels, *size)).astype(np.float32))
            for size in case["sizes"]
        ]
        with torch.no_grad():
            outputs = dict(zip(("cls", "reg", "agn"), head(features), strict=True))
        for kind, maps in outputs.items():
            for level, found in enumerate(maps):
                key = f"{name}.{kind}{level}"
                assert (found is None) == (key not in golden.arrays), key
                if found is not None:
                    close(golden, found, key)


@pytest.mark.golden("centernet_targets")
def test_centernet_targets(golden: Golden) -> None:
    meta, arrays = golden.meta, golden.arrays
    sizes = [tuple(size) for size in meta["level_shapes"]]
    grids = [level_locations(*size, stride) for size, stride in zip(sizes, meta["strides"], strict=True)]
    close_in_brief(golden, torch.cat(grids), "grids")

    objects = [ground_truth(image, meta["image_size"]) for image in meta["gt"]]
    agnostic = detector(meta, only_proposal=True, with_agn_hm=True).assigner(objects, sizes)
    close(golden, agnostic.pos_inds, "pos_inds")
    close(golden, agnostic.labels, "labels")
    assert len(agnostic.distances) == arrays["M"].item()
    valid = (agnostic.distances.amax(dim=1) >= 0).nonzero().flatten()
    close(golden, valid, "reg.index")
    close(golden, agnostic.distances[valid], "reg.value")
    close_where_not_zero(golden, agnostic.heatmap, "agn")
    per_class = detector(meta).assigner(objects, sizes)
    close_where_not_zero(golden, per_class.heatmap, "cls")
    assert torch.equal(per_class.pos_inds, agnostic.pos_inds)

    outside = detector(meta, not_clamp_box=True).assigner([ground_truth(meta["clamp_gt"], meta["image_size"])], sizes)
    close(golden, outside.pos_inds, "clamp.pos_inds")
    close(golden, outside.labels, "clamp.labels")

    # Predictions: reg_pred = clip(reg_targets, 0, None) + F*abs(RandomState(seed).standard_normal((M,4)))
    if "more.pos_inds" not in arrays:
        return
    factor = float(re.search(r"\+ ([\d.]+)\*abs", meta["arrays_meaning"]["more.*"])[1])
    noise = np.abs(np.random.RandomState(meta["more_seed"]).standard_normal(agnostic.distances.shape))
    predicted = agnostic.distances.clamp(min=0) + torch.from_numpy((factor * noise).astype(np.float32))
    more = detector(meta, more_pos=True, **meta["more_settings"]).assigner(objects, sizes, predicted)
    close(golden, more.pos_inds, "more.pos_inds")
    close(golden, more.labels, "more.labels")


def detector(meta: dict[str, Any], **settings: Any) -> CenterNet:
    """The module with defaults but for ``settings``, on as many of the default levels as the golden has strides.

    Of the fields of the golden, those that are named as an argument of the module (``strides``, ``num_classes``) count.
    """
    levels = len(meta["strides"])
    defaults = inspect.signature(CenterNet.__init__).parameters
    shared = {name: defaults[name].default[:levels] for name in ("in_features", "sizes_of_interest")}
    shared |= {key: meta[key] for key in defaults if key in meta}
    return CenterNet(**shared | settings)


def ground_truth(image: dict[str, list], size: list[int]) -> Instances:
    boxes = torch.tensor(image["boxes"], dtype=torch.float32).reshape(-1, 4)
    return Instances(tuple(size), gt_boxes=Boxes(boxes), gt_classes=torch.tensor(image["classes"], dtype=torch.int64))


def close_where_not_zero(golden: Golden, heat: Tensor, name: str) -> None:
    """The recorded elements agree, and the others are zero."""
    found = heat.flatten()
    index = torch.from_numpy(golden.arrays[f"{name}.index"]).long()
    # Smaller heat is cut to zero: rounding may decide. Without any object there is none.
    smallest = golden.arrays[f"{name}.value"].min(initial=1).item()
    found = torch.where(found < smallest * (1 + 1e-5), 0.0, found)
    expected = torch.zeros_like(found)
    expected[index] = torch.from_numpy(golden.arrays[f"{name}.value"])
    expected = torch.where(expected < smallest * (1 + 1e-5), 0.0, expected)
    assert_close(found, expected, **tolerance(golden))


@pytest.mark.golden("centernet_losses")
def test_centernet_losses(golden: Golden) -> None:
    names = [name for name in golden.arrays if name.startswith("in.")]
    inputs = {name.removeprefix("in."): torch.from_numpy(golden.arrays[name]) for name in names}
    for i, settings in enumerate(golden.meta["focal_settings"]):
        sums = binary_heatmap_focal_loss(inputs["logit"], inputs["target"], inputs["pos"], **settings)
        close(golden, torch.stack(sums), f"binary{i}")
        sums = heatmap_focal_loss(inputs["mlogit"], inputs["mtarget"], inputs["pos"], inputs["mlabel"], **settings)
        close(golden, torch.stack(sums), f"multi{i}")
    pair = inputs["iou_pred"], inputs["iou_target"]
    for name in (key.removesuffix(".none") for key in golden.arrays if key.endswith(".none")):
        close(golden, IOULoss(name)(*pair, reduction="none"), f"{name}.none")
        close(golden, IOULoss(name)(*pair, inputs["iou_weight"]), f"{name}.wsum")
    check_complete_losses(golden)


def check_complete_losses(golden: Golden) -> None:
    """Loss dicts of random predictions for the boxes of ``centernet_targets``."""
    meta = golden.sibling("centernet_targets").meta
    sizes = [tuple(size) for size in meta["level_shapes"]]
    images = [ground_truth(image, meta["image_size"]) for image in meta["gt"]]
    count = len(images) * sum(height * width for height, width in sizes)
    generator = np.random.RandomState(int(re.search(r"RandomState\((\d+)\)", golden.meta["full_recipe"])[1]))
    # "agn_logit=(1.5*rs.standard_normal(M)-2); reg_pred=abs(2*rs…((M,4))); class_logit=(1.5*rs…((M,5))-2)", so ordered
    object_logits = scaled_noise(golden.meta["full_recipe"], "agn_logit", generator, (count,))
    distances = scaled_noise(golden.meta["full_recipe"], "reg_pred", generator, (count, 4)).abs()
    class_logits = scaled_noise(golden.meta["full_recipe"], "class_logit", generator, (count, meta["num_classes"]))
    for name, settings in golden.meta["full_settings"].items():
        objects = images
        if isinstance(settings, str):  # "as NAME, but none of the 3 images has a box"
            settings = golden.meta["full_settings"][re.match(r"as (\w+)", settings)[1]]
            objects = [each[:0] for each in images]
        model = detector(meta, **settings)
        losses = model.losses(model.assigner(objects, sizes), distances, class_logits, object_logits)
        prefix = f"full.{name}."
        assert set(losses) == {key.removeprefix(prefix) for key in golden.arrays if key.startswith(prefix)}, name
        for key, loss in losses.items():
            close(golden, loss, prefix + key)


def scaled_noise(recipe: str, name: str, generator: np.random.RandomState, shape: tuple[int, ...]) -> Tensor:
    """``name=…(factor*rs.standard_normal(…)-offset)`` of the recipe; the offset may lack."""
    factor, offset = re.search(rf"{name}=\w*\(([\d.]+)\*[^;]*?\)(?:-([\d.]+))?\)(?:[;,]|$)", recipe).groups()
    noise = float(factor) * generator.standard_normal(shape) - float(offset or 0)
    return torch.from_numpy(noise.astype(np.float32))


@pytest.mark.golden("centernet_decode")
def test_centernet_decode(golden: Golden) -> None:
    meta = golden.meta
    sizes = [tuple(size) for size in meta["image_sizes"]]
    for name, case in meta["cases"].items():
        generator = np.random.RandomState(case["seed"])
        heatmaps, distances, object_maps = [], [], []
        for height, width in meta["level_shapes"]:
            shape = (len(sizes), case["C"], height, width)
            heatmaps.append(torch.from_numpy(generator.uniform(0, 1, shape).astype(np.float32) ** 3))
            shape = (len(sizes), 4, height, width)
            distances.append(torch.from_numpy(np.abs(3 * generator.standard_normal(shape)).astype(np.float32)))
            shape = (len(sizes), 1, height, width)
            object_maps.append(torch.from_numpy(generator.uniform(0, 1, shape).astype(np.float32)))
        model = detector(meta, **case["settings"])
        decoder = model.train_decoder if case["training"] else model.test_decoder
        both = model.with_agn_hm and not model.only_proposal
        found = decoder(heatmaps, distances, sizes, object_maps if both else None)
        for i, instances in enumerate(found):
            assert instances.image_size == sizes[i]
            boxes = instances.pred_boxes.tensor
            close_detections(golden, f"{name}.{i}", boxes, instances.scores, instances.pred_classes)


def test_outputs_of_the_module_are_those_of_its_parts() -> None:
    """The forward pass joins head, targets, losses and decoding as the goldens of the parts do."""
    torch.manual_seed(0)
    model = CenterNet(
        num_classes=3,
        in_features=("p3", "p4"),
        strides=(8, 16),
        sizes_of_interest=((0, 40), (30, 1000)),
        score_thresh=0.005,
        with_agn_hm=True,
        centernet_head=CenterNetHead(32, 2, num_classes=3, with_agn_hm=True),
    )
    features = {"p3": torch.randn(2, 32, 8, 8), "p4": torch.randn(2, 32, 4, 4), "p5": torch.zeros(2, 1, 1, 1)}
    images = ImageList(torch.zeros(2, 3, 64, 64), [(64, 64), (50, 60)])
    objects = [ground_truth({"boxes": [[4, 4, 30, 40]], "classes": [2]}, size) for size in images.image_sizes]
    proposals, losses = model(images, features, objects)
    assert proposals is None
    class_logits, distances, object_logits = model.centernet_head([features["p3"], features["p4"]])
    targets = model.assigner(objects, [(8, 8), (4, 4)])
    expected = model.losses(
        targets, flatten_levels(distances), flatten_levels(class_logits), flatten_levels(object_logits)[:, 0]
    )
    assert losses == expected
    instances, losses = model.eval()(images, features)
    assert losses == {}
    assert [set(each.get_fields()) for each in instances] == [{"pred_boxes", "scores", "pred_classes"}] * 2
    decoded = model.test_decoder(
        [each.sigmoid() for each in class_logits],
        distances,
        images.image_sizes,
        [each.sigmoid() for each in object_logits],
    )
    for one, other in zip(instances, decoded, strict=True):
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(one.scores, other.scores)
