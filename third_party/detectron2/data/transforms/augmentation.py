"""What random augmentations have in common: an augmentation looks at its inputs and returns a transform."""

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "StandardAugInput",
    "TransformGen",
    "apply_augmentations",
    "apply_transform_gens",
]


class Augmentation:
    """A random policy. Subclasses write ``get_transform(self, image, ...)``, which returns a ``Transform``.

    The parameter names of ``get_transform`` say which attributes of the ``AugInput`` it is given; a single parameter
    is always the image. Randomness comes from NumPy's global generator.
    """

    input_args: tuple[str, ...] | None = None  # overrides what the signature says

    def get_transform(self, *args: Any) -> Transform:
        """The transform to apply to these inputs. It must not change them."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_transform(image)")

    def __call__(self, aug_input: "AugInput") -> Transform:
        """Transform ``aug_input`` in place and return the transform that was used."""
        transform = self.get_transform(*_fetch_inputs(self, aug_input))
        if not isinstance(transform, Transform):
            raise TypeError(f"{type(self).__name__}.get_transform returned {transform!r}, not a Transform")
        aug_input.transform(transform)
        return transform

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Set ``locals()`` of a constructor as attributes."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def _rand_range(
        self, low: float = 1.0, high: float | None = None, size: int | tuple[int, ...] | None = None
    ) -> Any:
        """Uniform in [low, high), or in [0, low) when ``high`` is left out."""
        if high is None:
            low, high = 0.0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        """The constructor's arguments that differ from their defaults."""
        shown = []
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            if value is not parameter.default:
                text = pprint.pformat(value)
                shown.append(f"{name}={'...' if chr(10) in text else text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


class AugInput:
    """What augmentations read and transform: an image and, where given, its boxes and label map.

    Args:
        image: (H, W) or (H, W, C), uint8 in [0, 255] or floating point.
        boxes: (N, 4) xyxy in pixels.
        sem_seg: (H, W) label map.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        _check_image(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Transform everything in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """Apply them one after the other and return the transforms that were used."""
        return AugmentationList(augmentations)(self)


class AugmentationList(Augmentation):
    """Augmentations applied one after the other, each looking at the result of those before it."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        super().__init__()
        self.augs = [_as_augmentation(aug) for aug in augs]

    def __call__(self, aug_input: AugInput) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class _FixedTransform(Augmentation):
    """A transform that does not depend on the input."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def apply_augmentations(augmentations: Sequence[Augmentation | Transform], inputs: Any) -> tuple[Any, TransformList]:
    """Apply augmentations to an image or an ``AugInput``.

    Returns:
        The new image, or the same ``AugInput`` changed in place; and the transforms that were used.
    """
    if isinstance(inputs, np.ndarray):
        aug_input = AugInput(inputs)
        transforms = aug_input.apply_augmentations(augmentations)
        return aug_input.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)


def _as_augmentation(aug: Augmentation | Transform) -> Augmentation:
    if isinstance(aug, Augmentation):
        return aug
    if isinstance(aug, Transform):
        return _FixedTransform(aug)
    raise TypeError(f"expected an Augmentation or a Transform, got {aug!r}")


def _fetch_inputs(aug: Augmentation, aug_input: AugInput) -> list[Any]:
    """The arguments of ``aug.get_transform``."""
    if aug.input_args is None:
        aug.input_args = _input_names(aug)
    arguments = []
    for name in aug.input_args:
        if not hasattr(aug_input, name):
            raise AttributeError(
                f"{type(aug).__name__}.get_transform needs {name!r}, which {type(aug_input).__name__} does not have"
            )
        arguments.append(getattr(aug_input, name))
    return arguments


def _input_names(aug: Augmentation) -> tuple[str, ...]:
    if isinstance(aug, _FixedTransform):
        return ()
    parameters = list(inspect.signature(aug.get_transform).parameters.values())
    if len(parameters) == 1:
        return ("image",)
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(
                f"{type(aug).__name__}.get_transform takes {parameter}: name its inputs instead, or set input_args"
            )
    return tuple(parameter.name for parameter in parameters)


def _check_image(image: Any) -> None:
    assert isinstance(image, np.ndarray), f"an image must be a NumPy array, got {type(image).__name__}"
    assert image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating), (
        f"an image must be uint8 or floating point, got {image.dtype}"
    )
    assert image.ndim in (2, 3), f"an image must have the shape (H, W) or (H, W, C), got {image.shape}"


# Former names
TransformGen = Augmentation
StandardAugInput = AugInput
apply_transform_gens = apply_augmentations
