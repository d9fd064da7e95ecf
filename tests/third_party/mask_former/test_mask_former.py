"""Properties and errors of MaskFormer, on tiny models."""

import itertools
import logging

import pytest
import torch
from torch.testing import assert_close

from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_model
from detectron2.structures import Instances
from mask_former.mask_former_model import build_criterion
from mask_former.modeling.criterion import SetCriterion, dice_loss, sigmoid_focal_loss
from mask_former.modeling.matcher import HungarianMatcher
from mask_former.modeling.transformer.position_encoding import PositionEmbeddingSine
from mask_former.panoptic_inference import panoptic_inference
from tests.segmentation_recipes import segmentation_config


def tiny_config(meta_architecture="MaskFormer", head="MaskFormerHead"):
    cfg = segmentation_config()
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    cfg.MODEL.SWIN.EMBED_DIM = 16
    cfg.MODEL.SWIN.DEPTHS = [1, 1, 1, 1]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 1, 2, 2]
    cfg.MODEL.SWIN.WINDOW_SIZE = 4
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.0
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [120.0] * 3, [60.0] * 3
    cfg.MODEL.SEM_SEG_HEAD.NAME = head
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 32
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    cfg.MODEL.MASK_FORMER.NHEADS = 2
    cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD = 32
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 2
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.0
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 5
    return cfg


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(tiny_config())


def record(height, width, labels=(0, 2)):
    masks = torch.zeros(len(labels), height, width, dtype=torch.bool)
    for index in range(len(labels)):
        masks[index, index :: max(len(labels), 1)] = True
    instances = Instances((height, width), gt_classes=torch.tensor(labels, dtype=torch.int64), gt_masks=masks)
    return {"image": torch.randint(0, 256, (3, height, width)), "instances": instances}


def test_matching_is_the_cheapest():
    torch.manual_seed(1)
    outputs = {"pred_logits": torch.randn(1, 4, 4), "pred_masks": torch.randn(1, 4, 5, 6)}
    targets = [{"labels": torch.tensor([0, 2, 2]), "masks": torch.rand(3, 5, 6) > 0.5}]
    matcher = HungarianMatcher(1, 20, 1)
    ((queries, true),) = matcher(outputs, targets)
    cost = matcher._weighted(
        matcher.costs(
            outputs["pred_logits"][0],
            outputs["pred_masks"][0],
            targets[0]["labels"],
            targets[0]["masks"].flatten(1).float(),
        )
    )
    best = min(sum(float(cost[q, t]) for t, q in enumerate(choice)) for choice in itertools.permutations(range(4), 3))
    assert float(cost[queries, true].sum()) == pytest.approx(best)
    assert queries.tolist() == sorted(queries.tolist())


def test_losses_do_not_depend_on_the_order_of_targets(model):
    torch.manual_seed(2)
    model.train()
    batch = [record(40, 50), record(33, 64, (1,))]
    first = model(batch)
    for x in batch:
        x["instances"] = x["instances"][torch.arange(len(x["instances"])).flip(0)]
    second = model(batch)
    assert set(first) == {f"loss_{name}{suffix}" for name in ("ce", "mask", "dice") for suffix in ("", "_0")}
    for name, value in first.items():
        assert_close(second[name], value, rtol=1e-5, atol=1e-5)


def test_a_batch_without_targets_has_gradients(model):
    model.train()
    losses = model([record(32, 64, ())])
    assert float(losses["loss_mask"]) == float(losses["loss_dice"]) == 0
    sum(losses.values()).backward()
    model.zero_grad()


def test_unmatched_queries_may_be_left_out():
    criterion = SetCriterion(2, HungarianMatcher(), {}, 0.0, ["labels"])
    outputs = {"pred_logits": torch.randn(1, 3, 3, requires_grad=True), "pred_masks": torch.zeros(1, 3, 4, 4)}
    targets = [{"labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 8, 8)}]
    assert float(criterion(outputs, targets)["loss_ce"].detach()) == 0


def test_class_weights_of_the_outputs_replace_those_of_the_criterion():
    torch.manual_seed(3)
    outputs = {"pred_logits": torch.randn(1, 3, 3), "pred_masks": torch.randn(1, 3, 4, 4)}
    targets = [{"labels": torch.tensor([0, 1]), "masks": torch.rand(2, 4, 4) > 0.5}]
    criterion = SetCriterion(2, HungarianMatcher(), {}, 0.1, ["labels"])
    plain = criterion(outputs, targets)["loss_ce"]
    same = criterion(outputs | {"empty_weight": torch.ones(2)}, targets)["loss_ce"]
    other = criterion(outputs | {"empty_weight": torch.tensor([1.0, 5.0])}, targets)["loss_ce"]
    assert plain == same != other


def test_losses_of_perfect_masks_vanish():
    target = (torch.rand(2, 30) > 0.5).float()
    logits = (2 * target - 1) * 50
    assert float(sigmoid_focal_loss(logits, target, 1)) == pytest.approx(0)
    assert float(dice_loss(logits, target, 1)) == pytest.approx(0)


def test_a_batch_gives_what_single_images_give(model):
    torch.manual_seed(4)
    model.eval()
    images = [{"image": torch.randint(0, 256, (3, 64, 64)), "height": 50, "width": 40} for _ in range(2)]
    with torch.no_grad():
        together = model(images)
        alone = [model([image])[0] for image in images]
    for first, second in zip(together, alone, strict=True):
        assert first["sem_seg"].shape == (3, 50, 40)
        assert_close(first["sem_seg"], second["sem_seg"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"])
def test_per_pixel_baselines(head):
    cfg = tiny_config("SemanticSegmentor", head)
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 3
    baseline = build_model(cfg).train()
    batch = [{"image": torch.randint(0, 256, (3, 32, 64)), "sem_seg": torch.randint(0, 3, (32, 64))}]
    losses = baseline(batch)
    expected = {"loss_sem_seg"} | ({"loss_sem_seg_0"} if "Plus" in head else set())
    assert set(losses) == expected
    sum(losses.values()).backward()
    with torch.no_grad():
        assert baseline.eval()(batch)[0]["sem_seg"].shape == (3, 32, 64)


def test_a_baseline_with_queries_needs_one_for_each_class():
    with pytest.raises(ValueError, match="NUM_OBJECT_QUERIES is 5, .* one query for each of the 3 classes"):
        build_model(tiny_config("SemanticSegmentor", "PerPixelBaselinePlusHead"))


def test_old_state_dicts_load(model, caplog):
    state = {
        name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value
        for name, value in model.state_dict().items()
    }
    with caplog.at_level(logging.WARNING, logger="mask_former"):
        model.load_state_dict(state)
    assert "come from an old version" in caplog.text
    model.load_state_dict(dict(model.state_dict()))  # without a version, but with the new names


def test_reading_an_encoded_map_needs_the_decoder_that_encodes():
    cfg = tiny_config()
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "transformer_encoder"
    shapes = {f"res{i + 2}": ShapeSpec(channels=16 * 2**i, stride=4 * 2**i) for i in range(4)}
    head = SEM_SEG_HEADS_REGISTRY.get("MaskFormerHead")(cfg, shapes)
    features = {
        name: torch.zeros(1, shape.channels, 64 // shape.stride, 64 // shape.stride) for name, shape in shapes.items()
    }
    with pytest.raises(ValueError, match="needs MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"):
        head(features)
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "res9"
    with pytest.raises(ValueError, match="TRANSFORMER_IN_FEATURE is 'res9'; expected 'transformer_encoder' or one of"):
        SEM_SEG_HEADS_REGISTRY.get("MaskFormerHead")(cfg, shapes)


def test_unknown_outputs_losses_and_decoders():
    cfg = tiny_config()
    cfg.MODEL.SWIN.OUT_FEATURES = ["res7"]
    with pytest.raises(ValueError, match="OUT_FEATURES is .*'res7'"):
        build_model(cfg)
    with pytest.raises(ValueError, match="has no losses .*'boxes'"):
        SetCriterion(2, HungarianMatcher(), {}, 0.1, ["boxes"])
    with pytest.raises(ValueError, match="only zero costs"):
        HungarianMatcher(0, 0, 0)
    with pytest.raises(ValueError, match="scale without normalize"):
        PositionEmbeddingSine(4, scale=1.0)
    cfg = tiny_config()
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "SemSegFPNHead"
    with pytest.raises(ValueError, match="PIXEL_DECODER_NAME is 'SemSegFPNHead', which has no forward_features"):
        build_model(cfg)


def test_weights_of_the_losses():
    cfg = tiny_config()
    cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = False
    assert build_criterion(cfg, 3).weight_dict == {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}


def test_panoptic_segments():
    logits = torch.full((4, 4), -9.0)
    for query, label in enumerate((0, 1, 1, 3)):  # class 3 is "no object"
        logits[query, label] = 9
    masks = torch.full((4, 2, 4), -9.0)
    masks[0, :, 0] = masks[1, 0, 1:3] = masks[2, 1, 1:3] = masks[3, :, 3] = 9
    segments, infos = panoptic_inference(logits, masks, {0}, 0.5, 0.8)
    assert segments.tolist() == [[1, 2, 2, 0], [1, 2, 2, 0]]  # stuff of one class is one segment
    assert infos == [{"id": 1, "isthing": True, "category_id": 0}, {"id": 2, "isthing": False, "category_id": 1}]
    _, infos = panoptic_inference(logits, masks, {0, 1}, 0.5, 0.8)
    assert [info["category_id"] for info in infos] == [0, 1, 1]
    assert panoptic_inference(logits * 0, masks, {0}, 0.5, 0.8)[1] == []
