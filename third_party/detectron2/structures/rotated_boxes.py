"""Rotated boxes: a name that code written for detectron2 imports. Its function is not provided here."""

from typing import Any

from detectron2.structures.boxes import Boxes


class RotatedBoxes(Boxes):
    """Stands for detectron2's class in imports and type checks; nothing here makes one."""

    def __init__(self, tensor: Any) -> None:
        raise NotImplementedError("RotatedBoxes(...) is not provided here; it needs the real detectron2")
