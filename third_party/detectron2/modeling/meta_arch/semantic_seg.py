"""Semantic segmentation: the model, and the head of Panoptic FPN (arXiv 1901.02446)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers.batch_norm import get_norm
from detectron2.layers.blocks import Norm
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import Conv2d
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import build_backbone
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.images import Inputs, normalized_images, output_size, register_pixel_statistics
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures.image_list import ImageList
from detectron2.utils.registry import Registry

__all__ = ["SEM_SEG_HEADS_REGISTRY", "SemSegFPNHead", "SemanticSegmentor", "build_sem_seg_head"]

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = """
Heads that turn feature maps into per-pixel scores, called as ``f(cfg, input_shape)`` with the `ShapeSpec` of each
feature map by name.
"""


def build_sem_seg_head(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """The head that ``MODEL.SEM_SEG_HEAD.NAME`` names.

    Raises:
        KeyError: no head of that name is registered.
    """
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


@META_ARCH_REGISTRY.register()
class SemanticSegmentor(nn.Module):
    """Backbone and head.

    Args:
        sem_seg_head: called as ``head(features, targets)``, returns (scores (N, C, H, W) or None, losses). Its
            ``ignore_value`` marks the pixels of targets that do not count.
    """

    pixel_mean: Tensor  # (C, 1, 1)
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        register_pixel_statistics(self, pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: Inputs) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses by name in training, otherwise one dict ``{"sem_seg": scores (C, H, W)}`` for each image.

        Args:
            batched_inputs: one dict per image. ``image`` (C, H, W) in the training's channel order and range;
                ``sem_seg`` (H, W) int64 with the ground truth, in training; ``height`` and ``width`` of the result.
        Raises:
            ValueError: the ground truth of an image has not its size.
        """
        images = normalized_images(batched_inputs, self.pixel_mean, self.pixel_std, self.backbone)
        features = self.backbone(images.tensor)
        targets = self._padded_targets(batched_inputs, images) if "sem_seg" in batched_inputs[0] else None
        results, losses = self.sem_seg_head(features, targets)
        if self.training:
            return losses
        return [
            {"sem_seg": sem_seg_postprocess(result, size, *output_size(entry, size))}
            for result, entry, size in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]

    def _padded_targets(self, batched_inputs: Inputs, images: ImageList) -> Tensor:
        """(N, H, W) label maps, padded like the images with the head's ``ignore_value``."""
        targets = [entry["sem_seg"].to(self.device) for entry in batched_inputs]
        for entry, target, size in zip(batched_inputs, targets, images.image_sizes, strict=True):
            if tuple(target.shape) != tuple(size):
                raise ValueError(
                    f"'sem_seg' of {entry.get('file_name', 'an input')} has shape {tuple(target.shape)}, expected "
                    f"that of its image, {tuple(size)}"
                )
        return ImageList.from_tensors(
            targets,
            self.backbone.size_divisibility,
            self.sem_seg_head.ignore_value,
            self.backbone.padding_constraints,
        ).tensor


@SEM_SEG_HEADS_REGISTRY.register()
class SemSegFPNHead(nn.Module):
    """Brings pyramid levels to one stride by convolutions and bilinear upsampling, and classifies their sum.

    Args:
        input_shape: the levels to use.
        conv_dims: width of all convolutions.
        common_stride: stride of the finest level, at which the loss' scores are predicted.
        norm: of all convolutions, which have a bias only without one.
        ignore_value: label of pixels that do not count.
    Raises:
        ValueError: no level, or one finer than ``common_stride``.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int,
        common_stride: int,
        loss_weight: float = 1.0,
        norm: Norm = None,
        ignore_value: int = -1,
    ) -> None:
        super().__init__()
        if not input_shape:
            raise ValueError("SemSegFPNHead(input_shape=) cannot be empty: see MODEL.SEM_SEG_HEAD.IN_FEATURES")
        levels = sorted(input_shape.items(), key=lambda item: item[1].stride)
        self.in_features = [name for name, _ in levels]
        self.ignore_value = ignore_value
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.scale_heads: list[nn.Sequential] = []  # a plain list: each is registered under its level's name
        for name, shape in levels:
            head = _scale_head(name, shape, conv_dims, common_stride, norm)
            self.scale_heads.append(head)
            self.add_module(name, head)
        self.predictor = Conv2d(conv_dims, num_classes, kernel_size=1)
        c2_msra_fill(self.predictor)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        settings = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in settings.IN_FEATURES},
            "num_classes": settings.NUM_CLASSES,
            "ignore_value": settings.IGNORE_VALUE,
            "conv_dims": settings.CONVS_DIM,
            "common_stride": settings.COMMON_STRIDE,
            "norm": settings.NORM,
            "loss_weight": settings.LOSS_WEIGHT,
        }

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """(None, losses) in training, otherwise (scores (N, C, H, W) at stride 1, {})."""
        if self.training and targets is None:
            raise ValueError("SemSegFPNHead got no ground truth in training: each input needs 'sem_seg'")
        scores = self.layers(features)
        if self.training:
            return None, self.losses(scores, targets)
        return self._upsample(scores), {}

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Scores (N, C, H / common_stride, W / common_stride)."""
        total = self.scale_heads[0](features[self.in_features[0]])
        for name, head in zip(self.in_features[1:], self.scale_heads[1:], strict=True):
            total = total + head(features[name])
        return self.predictor(total)

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean cross entropy over the pixels that count, as ``loss_sem_seg``; zero where no pixel does.

        Args:
            predictions: scores of `layers`.
            targets: (N, H, W) labels at stride 1.
        """
        scores = self._upsample(predictions.float())  # float32: the sum has as many terms as there are pixels
        total = F.cross_entropy(scores, targets, reduction="sum", ignore_index=self.ignore_value)
        count = (targets != self.ignore_value).sum().clamp(min=1)
        return {"loss_sem_seg": total / count * self.loss_weight}

    def _upsample(self, scores: Tensor) -> Tensor:
        return F.interpolate(scores, scale_factor=self.common_stride, mode="bilinear", align_corners=False)


def _scale_head(name: str, shape: ShapeSpec, width: int, common_stride: int, norm: Norm) -> nn.Sequential:
    """One 3×3 convolution with ReLU per halving of the stride, each followed by upsampling; at least one."""
    halvings = 0
    while shape.stride > common_stride << halvings:
        halvings += 1
    if shape.stride != common_stride << halvings:
        raise ValueError(
            f"SemSegFPNHead takes levels of stride {common_stride} (MODEL.SEM_SEG_HEAD.COMMON_STRIDE) times a power "
            f"of two, but {name} has stride {shape.stride}"
        )
    layers: list[nn.Module] = []
    for i in range(max(halvings, 1)):
        conv = Conv2d(
            shape.channels if i == 0 else width,
            width,
            kernel_size=3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, width),
            activation=F.relu,
        )
        c2_msra_fill(conv)
        layers.append(conv)
        if halvings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)
