"""timm's networks as backbones: ResNet-50 of ImageNet-21K, ResNets, EfficientNets, RegNets and ConvNeXts."""

import logging
from collections.abc import Sequence
from typing import Any

import timm
from timm.layers import BatchNormAct2d, freeze_batch_norm_2d
from timm.models import FeatureListNet
from torch import Tensor, nn

from detection.backbones.folded import FoldedNetwork
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from prompt_pretrain.errors import InputError

__all__ = ["TimmBackbone", "build_fpn", "build_timm_backbone"]

logger = logging.getLogger(__name__)

IN21K_RESNET50 = "resnet50_in21k"
_IN21K_CLASSES = 11221  # of the processed ImageNet-21K; the classifier is in the released checkpoints, never used
# Names of the release whose weights timm keeps under a tag.
_TAGGED = {"convnext_tiny_21k": "convnext_tiny.fb_in22k"}
_FAMILIES = ("eff", "resnet", "regnet", "convnext")


class ClassifierFeatures(nn.Module):
    """A whole timm ResNet, classifier included, that returns its feature maps.

    timm's own feature extraction drops the classifier, which released checkpoints hold. The entries of the state dict
    are those of the ResNet, without a prefix.
    """

    def __init__(self, resnet: nn.Module, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.out_indices = tuple(out_indices)
        self.channels = [resnet.feature_info[index]["num_chs"] for index in out_indices]
        self.reductions = [resnet.feature_info[index]["reduction"] for index in out_indices]
        for name, child in resnet.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps ``out_indices`` of [stem, layer1, …, layer4]."""
        x = self.act1(self.bn1(self.conv1(x)))
        features = [x]
        x = self.maxpool(x)
        for index in range(1, max(self.out_indices) + 1):
            x = self.get_submodule(f"layer{index}")(x)
            features.append(x)
        return [features[index] for index in self.out_indices]


class TimmBackbone(Backbone):
    """Feature maps ``layer<l>`` of a timm network, which is the child ``base``.

    Args:
        base_name: ``resnet50_in21k``, ``convnext_tiny_21k`` or a name of timm's ResNets, EfficientNets, RegNets or
            ConvNeXts.
        out_levels: levels l to return, from fine to coarse; level l is feature number l - 1 of the network. ResNets
            have [stem, C2, C3, C4, C5] (levels 1 to 5), ConvNeXts four stages (levels 1 to 4).
        norm: ``FrozenBN`` freezes the batch norms with their statistics; any other name leaves them as they are.
        freeze_at: for ResNets, 1 freezes the first convolution, 2 also the first stage.
        pretrained: fetch timm's weights.
    Raises:
        InputError: an unknown network, levels that it does not have, or weights that cannot be fetched.
    """

    def __init__(
        self,
        *,
        base_name: str,
        out_levels: Sequence[int],
        norm: str = "",
        freeze_at: int = 0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        indices = [int(level) - 1 for level in out_levels]
        self.base = _build_base(base_name, indices, pretrained)
        self._inference = FoldedNetwork()
        if isinstance(self.base, ClassifierFeatures):
            channels, strides = self.base.channels, self.base.reductions
        else:
            channels, strides = self.base.feature_info.channels(), self.base.feature_info.reduction()
        self._out_features = [f"layer{level}" for level in out_levels]
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        if norm == "FrozenBN":
            _freeze_norms(self.base)
        if "resnet" in base_name:
            frozen = [self.base.conv1] if freeze_at >= 1 else []
            frozen += [self.base.layer1] if freeze_at >= 2 else []
            for module in frozen:
                module.requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._out_features, self._inference(self.base, x), strict=True))


def _build_base(name: str, indices: list[int], pretrained: bool) -> nn.Module:
    if not any(family in name for family in _FAMILIES):
        raise InputError(
            f"MODEL.TIMM.BASE_NAME is {name!r}; expected {IN21K_RESNET50}, {', '.join(_TAGGED)} or one of timm's "
            "resnet, efficientnet, regnet and convnext models"
        )
    if name == IN21K_RESNET50:
        if pretrained:
            raise InputError(
                f"timm has no weights for {IN21K_RESNET50}; set MODEL.TIMM.PRETRAINED False and MODEL.WEIGHTS to "
                "models/resnet50_miil_21k.pkl (tools/convert_checkpoint.py makes it)"
            )
        resnet = timm.create_model("resnet50", pretrained=False, num_classes=_IN21K_CLASSES)
        _check_levels(name, indices, len(resnet.feature_info))
        return ClassifierFeatures(resnet, indices)
    options: dict[str, Any] = {}
    if "convnext" in name:
        options["drop_path_rate"] = 0.2 if "tiny" in name or "small" in name else 0.3
    return _create_features(name, indices, pretrained, options)


def _create_features(name: str, indices: list[int], pretrained: bool, options: dict[str, Any]) -> FeatureListNet:
    architecture = _TAGGED.get(name, name)
    if not timm.is_model(architecture):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "none"
        raise InputError(f"MODEL.TIMM.BASE_NAME {name!r} is no model of timm {timm.__version__}; near it: {near}")
    _check_levels(name, indices, 4 if "convnext" in name else 5)
    try:
        return timm.create_model(
            architecture, features_only=True, out_indices=indices, pretrained=pretrained, **options
        )
    except Exception as error:
        if not pretrained:
            raise
        # The hub and urllib raise many kinds.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"timm's weights of {architecture} could not be fetched ({reason}); give MODEL.WEIGHTS, or set "
            "MODEL.TIMM.PRETRAINED False to start from random ones"
        ) from error


def _check_levels(name: str, indices: list[int], count: int) -> None:
    if not indices or sorted(set(indices)) != indices or not 0 <= indices[0] <= indices[-1] < count:
        raise InputError(
            f"MODEL.TIMM.OUT_LEVELS is {[index + 1 for index in indices]}; {name} has levels 1 to {count}, "
            "to be given in rising order"
        )


def _freeze_norms(base: nn.Module) -> None:
    """Replace batch norms by frozen ones, in place; norms that contain their activation keep it."""
    for parent in list(base.modules()):
        for name, child in parent.named_children():
            if isinstance(child, BatchNormAct2d):
                parent.add_module(name, freeze_batch_norm_2d(child))
    FrozenBatchNorm2d.convert_frozen_batchnorm(base)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The network of ``MODEL.TIMM``.

    With MODEL.WEIGHTS set, nothing is fetched even if MODEL.TIMM.PRETRAINED: the checkpoint replaces those weights.
    """
    settings = cfg.MODEL.TIMM
    pretrained = settings.PRETRAINED and not cfg.MODEL.WEIGHTS
    if settings.PRETRAINED and not pretrained:
        logger.info("MODEL.WEIGHTS is set: the weights of MODEL.TIMM.PRETRAINED are not fetched")
    return TimmBackbone(
        base_name=settings.BASE_NAME,
        out_levels=settings.OUT_LEVELS,
        norm=settings.NORM,
        freeze_at=settings.FREEZE_AT,
        pretrained=pretrained,
    )


@BACKBONE_REGISTRY.register()
def build_p67_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """`FPN` on `build_timm_backbone`, with ``p6`` and ``p7`` by convolutions from ``p5``."""
    return build_fpn(cfg, build_timm_backbone(cfg, input_shape), with_p6p7=True)


@BACKBONE_REGISTRY.register()
def build_p35_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """`FPN` on `build_timm_backbone` without a top block."""
    return build_fpn(cfg, build_timm_backbone(cfg, input_shape), with_p6p7=False)


def build_fpn(cfg: CfgNode, bottom_up: Backbone, with_p6p7: bool) -> FPN:
    """The pyramid of ``MODEL.FPN`` on ``bottom_up``; ``p6`` and ``p7`` come from ``p5``, not from ``bottom_up``."""
    settings = cfg.MODEL.FPN
    width = settings.OUT_CHANNELS
    return FPN(
        bottom_up=bottom_up,
        in_features=settings.IN_FEATURES,
        out_channels=width,
        norm=settings.NORM,
        top_block=LastLevelP6P7(width, width, in_feature="p5") if with_p6p7 else None,
        fuse_type=settings.FUSE_TYPE,
    )
