"""The backbone's outputs that a head asks for by name."""

from collections.abc import Mapping, Sequence

from detectron2.layers.shape_spec import ShapeSpec


def the_features(input_shape: Mapping[str, ShapeSpec], names: Sequence[str], key: str) -> list[ShapeSpec]:
    """Shapes of the feature maps ``names``.

    Args:
        key: the configuration key that holds ``names``, for the error.
    Raises:
        ValueError: no names, or one that the backbone does not give.
    """
    unknown = [name for name in names if name not in input_shape]
    if unknown or not names:
        raise ValueError(f"{key} is {list(names)}, expected some of the backbone's outputs {', '.join(input_shape)}")
    return [input_shape[name] for name in names]


def common_channels(shapes: Sequence[ShapeSpec], names: Sequence[str], key: str) -> int:
    """Number of channels of all feature maps.

    Raises:
        ValueError: they differ.
    """
    channels = [shape.channels for shape in shapes]
    if len(set(channels)) != 1:
        raise ValueError(f"{key} is {list(names)}, whose channels are {channels}; expected maps of one width")
    return channels[0]
