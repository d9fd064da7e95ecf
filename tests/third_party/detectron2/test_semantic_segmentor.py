"""Semantic segmentation: head and model on a backbone of two levels."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    SemanticSegmentor,
    build_model,
    build_sem_seg_head,
)
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

IGNORED = 9


@BACKBONE_REGISTRY.register()
class TwoLevelsOfTestSemanticSegmentor(Backbone):
    """Maps p2 and p4 by strided convolutions; wants sizes that 16 divides."""

    def __init__(self, cfg: CfgNode | None = None, input_shape: ShapeSpec | None = None) -> None:
        super().__init__()
        self._out_features = ["p4", "p2"]
        self._out_feature_channels = {"p2": 4, "p4": 6}
        self._out_feature_strides = {"p2": 4, "p4": 16}
        self.p2, self.p4 = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(3, 6, 16, 16)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"p2": self.p2(x), "p4": self.p4(x)}

    @property
    def size_divisibility(self) -> int:
        return 16


def head(**options: object) -> SemSegFPNHead:
    shapes = TwoLevelsOfTestSemanticSegmentor().output_shape()
    settings = {"num_classes": 3, "conv_dims": 8, "common_stride": 4, "ignore_value": IGNORED} | options
    return SemSegFPNHead(shapes, **settings)


def segmentor(**options: object) -> SemanticSegmentor:
    torch.manual_seed(0)
    return SemanticSegmentor(
        backbone=TwoLevelsOfTestSemanticSegmentor(),
        sem_seg_head=head(**options),
        pixel_mean=[1.0, 2.0, 3.0],
        pixel_std=[2.0, 2.0, 2.0],
    )


def features() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"p2": torch.randn(2, 4, 8, 12), "p4": torch.randn(2, 6, 2, 3)}


def test_the_head_sums_levels_of_one_stride() -> None:
    model, maps = head().eval(), features()
    assert list(model.in_features) == ["p2", "p4"]  # by stride
    fine = model.p2[0](maps["p2"])
    coarse = model.p4[0](maps["p4"])
    coarse = model.p4[2](F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False))
    coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    expected = model.predictor(fine + coarse)
    assert_close(model.layers(maps), expected)
    scores, losses = model(maps)
    assert losses == {}
    assert_close(scores, F.interpolate(expected, scale_factor=4, mode="bilinear", align_corners=False))


def test_names_and_norms_of_the_head() -> None:
    names = [name for name, _ in head(norm="GN", conv_dims=32).named_parameters()]
    assert names[:3] == ["p2.0.weight", "p2.0.norm.weight", "p2.0.norm.bias"]
    assert "p4.2.norm.weight" in names
    assert names[-2:] == ["predictor.weight", "predictor.bias"]
    assert "p2.0.bias" in [name for name, _ in head(norm="").named_parameters()]


def test_the_loss_is_the_mean_over_the_pixels_that_count() -> None:
    model, maps = head(loss_weight=0.5), features()
    targets = torch.randint(0, 3, (2, 32, 48))
    targets[:, :10] = IGNORED
    result, losses = model(maps, targets)
    assert result is None
    scores = F.interpolate(model.layers(maps), scale_factor=4, mode="bilinear", align_corners=False)
    log_probability = scores.log_softmax(dim=1).gather(1, targets.clamp(max=2)[:, None])[:, 0]
    assert list(losses) == ["loss_sem_seg"]
    assert_close(losses["loss_sem_seg"], -0.5 * log_probability[targets != IGNORED].mean())


def test_a_head_needs_levels_and_fitting_strides() -> None:
    with pytest.raises(ValueError, match="empty"):
        SemSegFPNHead({}, num_classes=2, conv_dims=4, common_stride=4)


def test_images_are_normalised_and_padded() -> None:
    model = segmentor().eval()
    images = [torch.randint(0, 256, (3, 30, 48), dtype=torch.uint8), torch.randint(0, 256, (3, 16, 20))]
    with torch.no_grad():
        together = model([{"image": image} for image in images])
    batch = torch.zeros(2, 3, 32, 48)
    for padded, image in zip(batch, images, strict=True):
        normal = (image - torch.tensor([1.0, 2.0, 3.0])[:, None, None]) / 2
        padded[:, : image.shape[1], : image.shape[2]] = normal
    with torch.no_grad():
        scores, _ = model.sem_seg_head(model.backbone(batch))
    for result, image, expected in zip(together, images, scores, strict=True):
        assert_close(result["sem_seg"], expected[:, : image.shape[1], : image.shape[2]])


def test_results_have_the_size_that_the_input_asks_for() -> None:
    (result,) = segmentor().eval()([{"image": torch.zeros(3, 16, 32), "height": 20, "width": 50}])
    assert result["sem_seg"].shape == (3, 20, 50)


def test_training_pads_targets_with_the_ignored_value() -> None:
    model = segmentor()
    targets = [torch.randint(0, 3, (20, 30)), torch.randint(0, 3, (32, 16))]
    inputs = [{"image": torch.randn(3, *target.shape), "sem_seg": target} for target in targets]
    losses = model(inputs)
    padded = torch.full((2, 32, 32), IGNORED)
    for row, target in zip(padded, targets, strict=True):
        row[: target.shape[0], : target.shape[1]] = target
    batch = torch.zeros(2, 3, 32, 32)
    for row, entry in zip(batch, inputs, strict=True):
        image = (entry["image"] - model.pixel_mean) / model.pixel_std
        row[:, : image.shape[1], : image.shape[2]] = image
    _, expected = model.sem_seg_head(model.backbone(batch), padded)
    assert_close(losses["loss_sem_seg"], expected["loss_sem_seg"])
    losses["loss_sem_seg"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_pixel_statistics_are_not_in_checkpoints() -> None:
    model = segmentor()
    assert model.pixel_mean.shape == model.pixel_std.shape == (3, 1, 1)
    assert not any("pixel" in name for name in model.state_dict())
    assert model.device == torch.device("cpu")


def test_models_by_name() -> None:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "TwoLevelsOfTestSemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 7
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2"]
    model = build_model(cfg)
    assert list(model.sem_seg_head.in_features) == ["p2"]  # the other level is there but not asked for
    assert model.sem_seg_head.predictor.out_channels == 7
    assert model.sem_seg_head.ignore_value == 255
    cfg.MODEL.SEM_SEG_HEAD.NAME = "NoSuchHead"
    with pytest.raises(KeyError, match="NoSuchHead"):
        build_sem_seg_head(cfg, {})
    cfg.MODEL.META_ARCHITECTURE = "NoSuchModel"
    with pytest.raises(KeyError, match="NoSuchModel"):
        build_model(cfg)
    assert "SemSegFPNHead" in SEM_SEG_HEADS_REGISTRY
