"""What the bundled models do beyond the real ones: clear refusals, and modulated deformation on the CPU."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, SemanticSegmentor, backbone, build_backbone, meta_arch
from detectron2.modeling.backbone.resnet import BottleneckBlock, DeformBottleneckBlock
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead


class Flat(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self._out_features, self._out_feature_channels, self._out_feature_strides = ["p2"], {"p2": 3}, {"p2": 4}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"p2": x[:, :, ::4, ::4]}


def segmentor() -> SemanticSegmentor:
    shapes = Flat().output_shape()
    head = SemSegFPNHead(shapes, num_classes=2, conv_dims=4, common_stride=4, ignore_value=255)
    return SemanticSegmentor(backbone=Flat(), sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)


def test_modulated_deformation_starts_as_half_a_plain_convolution() -> None:
    plain = BottleneckBlock(8, 16, bottleneck_channels=4, norm="")
    modulated = DeformBottleneckBlock(8, 16, bottleneck_channels=4, norm="", deform_modulated=True)
    modulated.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        modulated.conv2.weight *= 2  # its mask starts at one half
    x = torch.randn(2, 8, 9, 12)
    assert_close(modulated(x), plain(x), rtol=1e-4, atol=1e-5)


def test_offsets_and_masks_are_the_thirds_of_one_prediction() -> None:
    block = DeformBottleneckBlock(8, 8, bottleneck_channels=4, norm="", deform_modulated=True, deform_num_groups=2)
    with torch.no_grad():
        block.conv2_offset.bias[:36] = 100.0  # every sample lies outside of the image
        block.conv2.weight.normal_()
    x = torch.randn(1, 8, 6, 6)
    assert_close(block(x), x.relu())
    with torch.no_grad():
        block.conv2_offset.bias[:36] = 0.0
        block.conv2_offset.bias[36:] = -100.0  # every sample counts nothing
    assert_close(block(x), x.relu())


def test_a_batch_without_a_pixel_that_counts_has_loss_zero() -> None:
    model = segmentor()
    loss = model([{"image": torch.randn(3, 8, 8), "sem_seg": torch.full((8, 8), 255)}])["loss_sem_seg"]
    loss.backward()
    assert loss.item() == 0
    assert all(torch.count_nonzero(p.grad) == 0 for p in model.parameters())


@pytest.mark.parametrize(
    "entry, message",
    [
        ({}, "'image' of input 1 .no file name. is a NoneType, expected a tensor of shape .3, H, W"),
        ({"image": torch.zeros(1, 8, 8), "file_name": "a.png"}, "'image' of input 1 .a.png. is shape .1, 8, 8."),
        ({"image": torch.zeros(8, 8)}, "shape .8, 8."),
    ],
)
def test_inputs_without_a_fitting_image_are_named(entry: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmentor().eval()([{"image": torch.zeros(3, 8, 8)}, entry])


def test_label_maps_of_another_size_are_named() -> None:
    entry = {"image": torch.zeros(3, 8, 8), "sem_seg": torch.zeros(8, 9).long(), "file_name": "b.png"}
    with pytest.raises(ValueError, match=r"'sem_seg' of b.png has shape \(8, 9\), expected that of its image, \(8, 8"):
        segmentor()([entry])


def test_training_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="each input needs 'sem_seg'"):
        segmentor()([{"image": torch.zeros(3, 8, 8)}])


def test_levels_that_no_doubling_brings_to_the_common_stride_are_refused() -> None:
    for stride in (2, 12):
        with pytest.raises(ValueError, match=f"p9 has stride {stride}"):
            SemSegFPNHead({"p9": ShapeSpec(channels=4, stride=stride)}, num_classes=2, conv_dims=4, common_stride=4)


def test_pixel_statistics_must_agree() -> None:
    with pytest.raises(ValueError, match=r"MODEL.PIXEL_MEAN and MODEL.PIXEL_STD"):
        SemanticSegmentor(backbone=Flat(), sem_seg_head=nn.Identity(), pixel_mean=[0.0] * 3, pixel_std=[1.0])


def test_settings_are_refused_with_their_key_and_value() -> None:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = 51
    with pytest.raises(ValueError, match=r"MODEL.RESNETS.DEPTH is 51, expected one of 18, 34, 50, 101, 152"):
        build_backbone(cfg)
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [True]
    with pytest.raises(ValueError, match=r"DEFORM_ON_PER_STAGE is \[True\], expected four values"):
        build_backbone(cfg)


@pytest.mark.parametrize("package, names", [(backbone, backbone.LEFT_OUT), (meta_arch, meta_arch.LEFT_OUT)])
def test_models_that_are_left_out_say_so(package: object, names: tuple[str, ...]) -> None:
    for name in names:
        with pytest.raises(ImportError, match=f"{name} needs the real detectron2"):
            getattr(package, name)
    with pytest.raises(ImportError, match=r"swin.SwinTransformer needs the real detectron2"):
        from detectron2.modeling.backbone.swin import SwinTransformer  # noqa: F401
    with pytest.raises(ImportError, match=r"RetinaNet needs the real detectron2"):
        from detectron2.modeling import RetinaNet  # noqa: F401
