"""Keypoints: a name that code written for detectron2 imports. Its function is not provided here."""

from typing import Any


class Keypoints:
    """Stands for detectron2's class in imports and type checks; nothing here makes one."""

    def __init__(self, keypoints: Any) -> None:
        raise NotImplementedError("Keypoints(...) is not provided here; it needs the real detectron2")
