"""Shape of a feature map, as far as it is known."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """What modules tell each other about a feature map; ``stride`` is relative to the input image."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
