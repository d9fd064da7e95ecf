"""The network: backbone, feature levels, transformer, class and box heads of every decoder layer."""

import copy
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from detection.deformable_detr.positions import PositionEmbeddingSine, padding_mask, resized_mask
from detection.deformable_detr.transformer import DeformableTransformer, refined
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from prompt_pretrain.errors import InputError

_GROUPS = 32  # of the group norms behind the input projections
_PRIOR = 0.01  # initial probability of every class


class Prediction(NamedTuple):
    """Class logits (B, Q, C) and boxes (B, Q, 4) as (cx, cy, w, h), shares of each image's width and height."""

    logits: Tensor
    boxes: Tensor


class MaskedBackbone(nn.Module):
    """A detectron2 backbone that also says which cells of its maps are padding."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        shapes = backbone.output_shape()
        self.num_channels = [shape.channels for shape in shapes.values()]

    def forward(self, images: ImageList) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (B, C_l, H_l, W_l) in the order of the backbone's outputs, and masks (B, H_l, W_l)."""
        mask = padding_mask(images.image_sizes, images.tensor)
        maps = list(self.backbone(images.tensor).values())
        return maps, [resized_mask(mask, (level.shape[2], level.shape[3])) for level in maps]


class MLP(nn.Module):
    """Linear layers ``layers.{i}`` with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        sizes = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class DeformableDETR(nn.Module):
    """Set prediction of class logits and boxes (arXiv 2010.04159).

    Args:
        num_classes: C, scored by independent sigmoids; there is no background column.
        num_feature_levels: at least the backbone's outputs; the rest comes from stride-2 convolutions.
        aux_loss: also return the predictions of all but the last decoder layer.
        with_box_refine: every layer starts from the boxes of the one before.
        two_stage: the queries are the best boxes of a first stage on the encoder's output.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        transformer: DeformableTransformer,
        num_classes: int,
        num_queries: int,
        num_feature_levels: int,
        aux_loss: bool = True,
        with_box_refine: bool = False,
        two_stage: bool = False,
    ) -> None:
        super().__init__()
        width = transformer.d_model
        self.transformer = transformer
        self.aux_loss = aux_loss
        masked = MaskedBackbone(backbone)
        self.backbone = nn.Sequential(masked, PositionEmbeddingSine(width // 2))  # a pair; not called as a sequence
        self.input_proj = _input_projections(masked.num_channels, width, num_feature_levels)
        self.query_embed = None if two_stage else nn.Embedding(num_queries, 2 * width)

        class_head = nn.Linear(width, num_classes)
        nn.init.constant_(class_head.bias, -math.log((1 - _PRIOR) / _PRIOR))
        box_head = MLP(width, width, 4, 3)
        nn.init.zeros_(box_head.layers[-1].weight)
        nn.init.zeros_(box_head.layers[-1].bias)
        decoder = transformer.decoder
        count = len(decoder.layers) + int(two_stage)  # the last heads are the first stage's
        # Without refinement the layers share one head, which published checkpoints hold under every index.
        copied = copy.deepcopy if with_box_refine else _same
        self.class_embed = nn.ModuleList(copied(class_head) for _ in range(count))
        self.bbox_embed = nn.ModuleList(copied(box_head) for _ in range(count))
        if not two_stage:
            # Small boxes to start with, where a reference is a mere point.
            nn.init.constant_(self.bbox_embed[0].layers[-1].bias[2:], -2.0)
        if with_box_refine:
            decoder.bbox_embed = self.bbox_embed
        if two_stage:
            decoder.class_embed = self.class_embed

    def forward(self, images: ImageList) -> tuple[list[Prediction], Prediction | None]:
        """Predictions of the decoder layers, and in training with two stages those of the first stage.

        The last layer is the answer; the others are there in training with ``aux_loss``.
        """
        maps, masks = self.backbone[0](images)
        levels = [projection(level) for projection, level in zip(self.input_proj, maps, strict=False)]
        last = maps[-1]
        for projection in self.input_proj[len(maps) :]:
            last = projection(last)
            levels.append(last)
            masks.append(resized_mask(masks[0], (last.shape[2], last.shape[3])))
        positions = [self.backbone[1](mask).to(levels[0].dtype) for mask in masks]
        query_embed = None if self.query_embed is None else self.query_embed.weight
        found = self.transformer(levels, masks, positions, query_embed)

        numbers = range(len(found.hidden)) if self.aux_loss and self.training else [len(found.hidden) - 1]
        layers = [self._predict(i, found.hidden[i], found.references[i]) for i in numbers]
        if found.first_stage is None or not self.training:
            return layers, None
        logits, boxes = found.first_stage
        return layers, Prediction(logits, boxes.sigmoid())

    def _predict(self, layer: int, hidden: Tensor, reference: Tensor) -> Prediction:
        boxes = refined(self.bbox_embed[layer](hidden), reference).sigmoid()
        return Prediction(self.class_embed[layer](hidden), boxes)


def _same(module: nn.Module) -> nn.Module:
    return module


def _input_projections(channels: Sequence[int], width: int, num_levels: int) -> nn.ModuleList:
    """1 × 1 convolutions of the backbone's maps, then 3 × 3 of stride 2 for further levels, each with group norm."""
    if num_levels < len(channels):
        raise InputError(
            f"MODEL.DETR.NUM_FEATURE_LEVELS is {num_levels}, but the backbone gives {len(channels)} maps; raise it, or "
            f"shorten MODEL.RESNETS.OUT_FEATURES"
        )
    if width % _GROUPS:
        raise InputError(f"MODEL.DETR.HIDDEN_DIM is {width}, expected a multiple of {_GROUPS}")
    convolutions = [nn.Conv2d(count, width, 1) for count in channels]
    for i in range(num_levels - len(channels)):
        convolutions.append(nn.Conv2d(channels[-1] if i == 0 else width, width, 3, stride=2, padding=1))
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    return nn.ModuleList(nn.Sequential(c, nn.GroupNorm(_GROUPS, width)) for c in convolutions)
