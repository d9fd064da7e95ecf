"""The interface of feature extractors."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from detectron2.layers.shape_spec import ShapeSpec


class Backbone(nn.Module, ABC):
    """A network from a batch of images to named feature maps.

    Subclasses set ``_out_features`` (names in the order of the output), ``_out_feature_channels`` and
    ``_out_feature_strides`` (by name), from which `output_shape` is made, or override `output_shape`.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    @abstractmethod
    def forward(self, x: Tensor) -> Mapping[str, Tensor]:
        """Feature maps (N, channels, H / stride, W / stride) by name, of images ``x`` (N, C, H, W)."""

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this; 0 where any size will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """How images must be padded to a batch, beyond `size_divisibility`.

        Known keys: ``square_size``, the side of a square to pad to (none where it is not positive), and
        ``size_divisibility``, which replaces the property of that name.
        """
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map by name."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
