"""What is known about the objects of one image: fields of equal length under names of one's choice."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Instances:
    """Named fields, each with one entry per object; read and written as attributes.

    Fields can be anything with a length and an index: tensors, Boxes, masks, lists. Attributes whose names start with
    an underscore are ordinary ones.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """``image_size``: (height, width) in pixels; ``kwargs``: first fields."""
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        # Underscored names must not reach _fields: copy and pickle look them up before it exists.
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(f"no field '{name}' in these Instances" + self._known_fields(name))
        return self._fields[name]

    def _known_fields(self, name: str) -> str:
        return "" if name.startswith("_") else f"; fields are: {', '.join(self._fields) or 'none'}"

    def set(self, name: str, value: Any) -> None:
        """Set field ``name``; its length must be that of the other fields."""
        length = len(value)
        if self._fields:
            assert len(self) == length, f"field '{name}' has length {length}, these Instances hold {len(self)}"
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether there is a field ``name``."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Drop field ``name``."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """Field ``name``; KeyError if there is none."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields by name: the dict in use, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Instances whose fields went through their own ``to`` where they have one."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    def __getitem__(self, item: int | slice | Tensor) -> "Instances":
        """Every field indexed: by int (one object, still a length), slice, bool mask or index tensor."""
        if isinstance(item, int):
            count = len(self)
            if not -count <= item < count:
                raise IndexError(f"index {item} is out of range for {count} instances")
            item = slice(item % count, item % count + 1)
        chosen = Instances(self._image_size)
        for name, value in self._fields.items():
            chosen.set(name, _index(value, item))
        return chosen

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without fields have no length")

    def __iter__(self) -> Any:
        raise NotImplementedError("Instances are not iterable; index them or iterate over a field")

    @staticmethod
    def cat(instance_lists: Sequence["Instances"]) -> "Instances":
        """One Instances of all those given, which must have equal image sizes and the fields of the first.

        A single one is returned as it is, not copied. Tensors are concatenated, lists chained, and other fields joined
        by ``cat`` of their type.
        """
        assert len(instance_lists) > 0, "Instances.cat needs at least one Instances"
        assert all(isinstance(each, Instances) for each in instance_lists), "Instances.cat takes a list of Instances"
        if len(instance_lists) == 1:
            return instance_lists[0]
        size = instance_lists[0].image_size
        for each in instance_lists[1:]:
            assert each.image_size == size, f"Instances.cat of images of different sizes: {size}, {each.image_size}"
        joined = Instances(size)
        for name, first in instance_lists[0].get_fields().items():
            values = [each.get(name) for each in instance_lists]
            value: Any
            if isinstance(first, Tensor):
                value = torch.cat(values, dim=0)
            elif isinstance(first, list):
                value = [entry for part in values for entry in part]
            elif hasattr(type(first), "cat"):
                value = type(first).cat(values)
            else:
                raise ValueError(f"field '{name}' of type {type(first).__name__} has no cat() to join it by")
            joined.set(name, value)
        return joined

    def __repr__(self) -> str:
        count = len(self) if self._fields else 0
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"


def _index(value: Any, item: slice | Tensor) -> Any:
    """``value[item]``, also for lists, which know no masks and index tensors of their own."""
    if not isinstance(value, list) or isinstance(item, slice):
        return value[item]
    positions = torch.as_tensor(item)
    if positions.dtype == torch.bool:
        positions = positions.nonzero().squeeze(1)
    return [value[position] for position in positions.tolist()]
