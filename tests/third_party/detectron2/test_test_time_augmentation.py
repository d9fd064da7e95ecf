"""Augmented versions of an image, their coordinates, and merging of what a detector finds on them."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detectron2.config import get_cfg
from detectron2.data.transforms import HFlipTransform
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA, build_model


def _cfg(min_sizes, flip):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.TEST.AUG.MIN_SIZES = min_sizes
    cfg.TEST.AUG.MAX_SIZE = 400
    cfg.TEST.AUG.FLIP = flip
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    return cfg


@pytest.fixture
def inputs():
    image = torch.arange(3 * 80 * 100).reshape(3, 80, 100).remainder(251).to(torch.uint8)
    return {"image": image, "height": 120, "width": 150, "image_id": 7}


def _flips(version):
    return any(isinstance(transform, HFlipTransform) for transform in version["transforms"].transforms)


def test_versions_have_all_sizes_plain_and_flipped(inputs):
    versions = DatasetMapperTTA(_cfg((40, 80), flip=True))(inputs)
    sizes = sorted((tuple(version["image"].shape), _flips(version)) for version in versions)
    small, large = (3, 40, 50), (3, 80, 100)
    assert sizes == [(small, False), (small, True), (large, False), (large, True)]
    assert all(version["image_id"] == 7 and version["height"] == 120 for version in versions)
    assert "transforms" not in inputs and inputs["image"].shape == (3, 80, 100)


def test_without_flip_a_version_per_size(inputs):
    versions = DatasetMapperTTA(_cfg((80,), flip=False))(inputs)
    assert len(versions) == 1 and torch.equal(versions[0]["image"], inputs["image"])


def test_flipped_versions_mirror_plain_ones(inputs):
    versions = DatasetMapperTTA(_cfg((80,), flip=True))(inputs)
    plain, flipped = sorted(versions, key=_flips)
    assert torch.equal(plain["image"].flip(2), flipped["image"])


def test_transforms_lead_from_the_original_image_and_back(inputs):
    box = np.array([[15.0, 12.0, 75.0, 60.0]])
    for version in DatasetMapperTTA(_cfg((40, 80), flip=True))(inputs):
        height, width = version["image"].shape[1:]
        moved = version["transforms"].apply_box(box.copy())[0]
        x0, x1 = 15 / 150 * width, 75 / 150 * width
        if _flips(version):
            x0, x1 = width - x1, width - x0
        assert_close(moved, np.array([x0, 12 / 120 * height, x1, 60 / 120 * height]))
        assert_close(version["transforms"].inverse().apply_box(moved[None]), box)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(_cfg((80,), flip=False)).eval()


def test_one_unchanged_version_gives_the_plain_result(model, inputs):
    with torch.no_grad():
        merged = GeneralizedRCNNWithTTA(_cfg((80,), flip=False), model)([inputs])[0]["instances"]
        plain = model([inputs])[0]["instances"]
    assert len(plain) == 10
    assert_close(merged.pred_boxes.tensor, plain.pred_boxes.tensor)
    assert_close(merged.scores, plain.scores)
    assert torch.equal(merged.pred_masks, plain.pred_masks)


def test_versions_are_merged_in_the_original_size(model, inputs):
    with torch.no_grad():
        merged = GeneralizedRCNNWithTTA(_cfg((40, 80), flip=True), model)([inputs])[0]["instances"]
    assert merged.image_size == (120, 150)
    assert 0 < len(merged) <= 10
    assert merged.pred_masks.shape == (len(merged), 120, 150)
    boxes = merged.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes <= boxes.new_tensor([150, 120, 150, 120])).all()
    assert (merged.scores[:-1] >= merged.scores[1:]).all()
    assert model.roi_heads.mask_on


def test_other_models_are_refused():
    with pytest.raises((TypeError, AssertionError)):
        GeneralizedRCNNWithTTA(_cfg((80,), flip=False), torch.nn.Identity())
