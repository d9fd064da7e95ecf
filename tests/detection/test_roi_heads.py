"""Cascade and Res5 heads on all kinds of batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import detection
from centernet.config import add_centernet_config
from detection.cascade_roi_heads import DeticCascadeROIHeads
from detection.res5_roi_heads import CustomRes5ROIHeads
from detection.weak_proposals import top_proposals
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

CLASSES, WIDTH = 5, 8
SIZES = [(64, 96), (80, 60)]
KINDS = ("box", "image", "captiontag", "caption")


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = get_cfg()
    add_centernet_config(cfg)
    detection.add_detic_config(cfg)
    rows = np.random.RandomState(0).standard_normal((CLASSES, WIDTH)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "counts.json").write_text(json.dumps([{"id": i + 1, "image_count": i} for i in range(CLASSES)]))
    cfg.WITH_IMAGE_LABELS = True
    cfg.MODEL.MASK_ON = True
    heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    heads.NUM_CLASSES, heads.IN_FEATURES, heads.IOU_THRESHOLDS = CLASSES, ["p3"], [0.6]
    heads.SCORE_THRESH_TEST, heads.BATCH_SIZE_PER_IMAGE = 0.0, 16
    box.USE_ZEROSHOT_CLS, box.ZEROSHOT_WEIGHT_PATH, box.ZEROSHOT_WEIGHT_DIM = True, str(tmp_path / "rows.npy"), WIDTH
    box.CAT_FREQ_PATH, box.USE_FED_LOSS, box.FED_LOSS_NUM_CAT = str(tmp_path / "counts.json"), True, 3
    box.USE_SIGMOID_CE, box.CLS_AGNOSTIC_BBOX_REG, box.ADD_IMAGE_BOX = True, True, True
    box.NAME, box.NUM_FC, box.FC_DIM, box.POOLER_RESOLUTION = "FastRCNNConvFCHead", 1, 16, 3
    box.WS_NUM_PROPS = 4
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = (0.6, 0.7, 0.8)
    mask = cfg.MODEL.ROI_MASK_HEAD
    mask.NUM_CONV, mask.CONV_DIM, mask.POOLER_RESOLUTION, mask.CLS_AGNOSTIC_MASK = 1, 8, 4, True
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4, 2
    return cfg


def make(cfg: CfgNode, kind: type) -> DeticCascadeROIHeads | CustomRes5ROIHeads:
    torch.manual_seed(0)
    return kind(cfg, {"p3": ShapeSpec(channels=16, stride=8)})


def make_features() -> dict[str, Tensor]:
    return {"p3": torch.randn(2, 16, 10, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()}


def make_proposals(count: int = 9) -> list[Instances]:
    generator = torch.Generator().manual_seed(2)
    result = []
    for size in SIZES:
        corner = torch.rand(count, 2, generator=generator) * 30
        boxes = Boxes(torch.cat((corner, corner + 10 + 20 * torch.rand(count, 2, generator=generator)), dim=1))
        scores = torch.rand(count, generator=generator).sort(descending=True).values
        result.append(Instances(size, proposal_boxes=boxes, objectness_logits=scores))
    return result


def make_targets(kind: str) -> list[Instances]:
    targets = []
    for size in SIZES:
        target = Instances(size)
        target._pos_category_ids = [1, 3]
        boxes = torch.tensor([[4.0, 5, 30, 40], [20, 10, 50, 45]]) if kind == "box" else torch.zeros(0, 4)
        target.gt_boxes = Boxes(boxes)
        target.gt_classes = torch.tensor([1, 4])[: len(boxes)]
        if kind == "box":
            target.gt_masks = BitMasks(torch.ones(2, *size, dtype=torch.bool))
        targets.append(target)
    return targets


def train(heads: Any, kind: str, proposals: list[Instances] | None = None) -> tuple[list[Instances], dict[str, Tensor]]:
    images = ImageList(torch.zeros(1), SIZES)
    captions = torch.randn(2, WIDTH) if "caption" in kind else None
    with EventStorage():
        return heads.train()(
            images,
            make_features(),
            make_proposals() if proposals is None else proposals,
            make_targets(kind),
            ann_type=kind,
            classifier_info=(None, None, captions),
        )


@pytest.mark.parametrize("heads_class", [DeticCascadeROIHeads, CustomRes5ROIHeads])
def test_all_kinds_of_batches_have_the_same_losses(cfg: CfgNode, heads_class: type) -> None:
    heads = make(cfg, heads_class)
    keys = {kind: set(train(heads, kind)[1]) for kind in KINDS}
    suffixes = ("_stage0", "_stage1", "_stage2") if heads_class is DeticCascadeROIHeads else ("",)
    expected = {f"{name}{end}" for name in ("loss_cls", "loss_box_reg", "image_loss") for end in suffixes}
    assert all(found == expected | {"loss_mask"} for found in keys.values()), keys


@pytest.mark.parametrize("heads_class", [DeticCascadeROIHeads, CustomRes5ROIHeads])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_without_proposals_have_finite_losses(cfg: CfgNode, heads_class: type, kind: str) -> None:
    cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = False
    _, losses = train(make(cfg, heads_class), kind, make_proposals(0))
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()


@pytest.mark.parametrize("kind", ["prop", "proptag"])
def test_boxes_without_classes_train_no_head(cfg: CfgNode, kind: str) -> None:
    _, losses = train(make(cfg, DeticCascadeROIHeads), kind)
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_mask": 0}


def test_mask_loss_is_weighted(cfg: CfgNode) -> None:
    found = {}
    for weight in (1.0, 0.25):
        cfg.MODEL.ROI_HEADS.MASK_WEIGHT = weight
        heads = make(cfg, DeticCascadeROIHeads)
        torch.manual_seed(3)
        found[weight] = train(heads, "box")[1]["loss_mask"]
    assert_close(found[0.25], found[1.0] * 0.25)


@pytest.mark.parametrize("heads_class", [DeticCascadeROIHeads, CustomRes5ROIHeads])
def test_detections_of_a_batch_equal_those_of_single_images(cfg: CfgNode, heads_class: type) -> None:
    heads, features = make(cfg, heads_class).eval(), make_features()
    with torch.no_grad():
        together, _ = heads(ImageList(torch.zeros(1), SIZES), features, make_proposals())
        for i, expected in enumerate(together):
            alone = {name: feature[i : i + 1] for name, feature in features.items()}
            found = heads(ImageList(torch.zeros(1), SIZES[i : i + 1]), alone, make_proposals()[i : i + 1])[0][0]
            assert found.pred_classes.tolist() == expected.pred_classes.tolist()
            assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert_close(found.pred_masks, expected.pred_masks)
            assert len(found) > 0


@pytest.mark.parametrize("heads_class", [DeticCascadeROIHeads, CustomRes5ROIHeads])
def test_no_proposals_give_no_detections(cfg: CfgNode, heads_class: type) -> None:
    with torch.no_grad():
        found, _ = make(cfg, heads_class).eval()(ImageList(torch.zeros(1), SIZES), make_features(), make_proposals(0))
    assert [len(each) for each in found] == [0, 0]


def test_one_class_per_proposal_detects_each_region_once(cfg: CfgNode) -> None:
    cfg.MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL = True
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    with torch.no_grad():
        found, _ = make(cfg, DeticCascadeROIHeads).eval()(
            ImageList(torch.zeros(1), SIZES), make_features(), make_proposals()
        )
    assert [len(each) for each in found] == [9, 9]


def test_region_features_are_kept_on_request(cfg: CfgNode) -> None:
    cfg.MODEL.ROI_BOX_HEAD.ADD_FEATURE_TO_PROP = True
    proposals, _ = train(make(cfg, DeticCascadeROIHeads), "image")
    assert [each.feat.shape for each in proposals] == [(5, 16), (5, 16)]


def test_top_proposals_are_clipped_and_followed_by_the_image() -> None:
    proposals = make_proposals()
    proposals[0].proposal_boxes.tensor[0] = torch.tensor([-5.0, -5, 500, 500])
    found = top_proposals(proposals, 3, 0.5)
    assert [len(each) for each in found] == [4, 4]
    assert found[0].proposal_boxes.tensor[0].tolist() == [0, 0, 96, 64]
    assert found[0].proposal_boxes.tensor[-1].tolist() == [24, 16, 72, 48]
    assert found[0].objectness_logits[-1] == 1
    assert proposals[0].proposal_boxes.tensor[0].tolist() == [-5, -5, 500, 500]
    whole = top_proposals(proposals, 3, 1.5, whole_at_least=1.0)
    assert whole[1].proposal_boxes.tensor[-1].tolist() == [0, 0, 60, 80]
    assert [len(each) for each in top_proposals(proposals, 3, None)] == [3, 3]


def test_training_without_ground_truth_is_an_error(cfg: CfgNode) -> None:
    for heads_class in (DeticCascadeROIHeads, CustomRes5ROIHeads):
        with pytest.raises(AssertionError, match="needs ground truth"):
            make(cfg, heads_class).train()(ImageList(torch.zeros(1), SIZES), make_features(), make_proposals())
