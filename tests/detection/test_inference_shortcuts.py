"""What inference leaves out changes no result: regions that cannot pass, and masks of equal boxes."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import detection.cascade_roi_heads as cascade
from detection.linear_scores import EqualWeights, LinearScores
from detectron2.modeling import build_model
from tests.detection.released_models import released_config, write_embeddings
from tests.golden_recipes import fill_by_rules

NUM_CLASSES = 9
RECIPE = {
    "skip": ["zs_weight", "pixel_mean", "pixel_std", "scales."],
    "post": [
        ["backbone.fpn_lateral", "mul", 0.02],
        ["centernet_head.bbox_pred.bias", "set", 2.0],
        ["agn_hm.weight", "mul", 2.0],
        ["agn_hm.bias", "set", -2.0],
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> nn.Module:
    file = write_embeddings(tmp_path_factory.mktemp("model") / "rows.npy", 0, NUM_CLASSES, 32)
    overrides = {
        "MODEL.TIMM.BASE_NAME": "resnet18",
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
        "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM": 32,
        "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH": str(file),
        "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
        "MODEL.CENTERNET.POST_NMS_TOPK_TEST": 30,
    }
    model = build_model(released_config("BoxSup-C2_L_CLIP_R5021k_640b64_4x", overrides)).eval()
    fill_by_rules(model, RECIPE)
    return model


def images() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"image": 255 * torch.rand(3, height, 96, generator=generator)} for height in (64, 96)]


def detect(model: nn.Module, score_thresh: float) -> list:
    model.roi_heads.box_predictor[-1].test_score_thresh = score_thresh
    with torch.no_grad():
        return [output["instances"] for output in model(images())]


def assert_same(ours: list, theirs: list) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert len(one) == len(other)
        for name in ("scores", "pred_classes", "pred_masks"):
            assert_close(one.get(name), other.get(name), rtol=1e-4, atol=1e-5)
        assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor, rtol=1e-4, atol=1e-3)


def thresholds(model: nn.Module) -> list[float]:
    """Three, from one that all regions may pass to one above every score."""
    scores = torch.cat([found.scores for found in detect(model, 0.0)])
    return [0.02, scores.median().item(), 0.999999]


def test_regions_that_cannot_pass_are_left_out_and_none_else(model, monkeypatch):
    seen = []
    able = cascade._able_to_pass

    def counted(proposals, score_thresh):
        seen.append((len(proposals), len(able(proposals, score_thresh))))
        return able(proposals, score_thresh)

    for threshold in thresholds(model):
        monkeypatch.setattr(cascade, "_able_to_pass", counted)
        ours = detect(model, threshold)
        monkeypatch.setattr(cascade, "_able_to_pass", lambda proposals, score_thresh: proposals)
        assert_same(ours, detect(model, threshold))
    assert any(few < all_ for all_, few in seen[2:]) and any(few for _, few in seen[2:4])


def test_no_region_at_all_is_an_ordinary_input(model):
    found = detect(model, 0.999999)
    assert [len(each) for each in found] == [0, 0]
    assert [each.pred_masks.shape for each in found] == [(0, 64, 96), (0, 96, 96)]


def test_masks_of_equal_boxes_are_those_of_each_detection(model, monkeypatch):
    ours = detect(model, 0.02)
    assert any(len(each.pred_boxes.tensor.unique(dim=0)) < len(each) for each in ours)
    monkeypatch.setattr(model.roi_heads, "class_agnostic_mask", False)
    assert_same(ours, detect(model, 0.02))


def test_masks_some_at_a_time_are_those_all_at_once(model, monkeypatch):
    ours = detect(model, 0.02)
    monkeypatch.setattr(cascade, "_MASKS_AT_ONCE", 3)
    assert_same(ours, detect(model, 0.02))


def test_stages_of_equal_embeddings_share_one_weight():
    features, weight = torch.randn(4, 5), torch.randn(5, 7)
    share = EqualWeights()
    stages = [LinearScores(features + i, weight.clone(), None) for i in range(3)]
    shared = share(stages)
    assert all(stage.weight is stages[0].weight for stage in shared)
    assert [stage.features is other.features for stage, other in zip(shared, stages, strict=True)] == [True] * 3
    stages[2].weight[0, 0] += 1  # changed in place
    assert share(stages)[2].weight is stages[2].weight
    assert [stage.weight for stage in share([LinearScores(features, None, None)] * 2)] == [None, None]
