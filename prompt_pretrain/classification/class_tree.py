"""The class-tree file of ImageNet-21K-P, read without running anything in it."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from prompt_pretrain.errors import InputError, reason_of
from prompt_pretrain.safe_pickle import check_unfolded


class ClassTree(NamedTuple):
    """Content of ``imagenet21k_miil_tree.pth``.

    Attributes:
        class_list: WordNet ids in label order.
        class_description: WordNet id -> class name, a lemma with underscores.
        class_tree_list: per class its own index, its parent's, ... and the root's, into ``class_list``.
    """

    class_list: tuple[str, ...]
    class_description: dict[str, str]
    class_tree_list: tuple[tuple[int, ...], ...]


def read_class_tree(path: str | os.PathLike) -> ClassTree:
    """Read a class-tree file; only plain data is ever loaded from it.

    Raises:
        InputError: the file is missing, damaged, holds anything but plain data, or has no ``class_description``.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle version of a file that is then loaded or refused
            value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected the class tree of ImageNet-21K-P") from error
    except Exception as error:  # damaged archives and refused pickles raise many types
        raise InputError(
            f"{path} is damaged or holds more than plain data, so it was not loaded: nothing in it was run; "
            "get the class tree again, or remove it to use the built-in ImageNet-21K names"
        ) from error
    check_unfolded(value, path)
    names = value.get("class_description") if isinstance(value, Mapping) else None
    if not isinstance(names, Mapping) or not all(isinstance(k, str) and isinstance(v, str) for k, v in names.items()):
        raise InputError(f"{path} has no 'class_description' from WordNet ids to names; get the class tree again")
    try:
        class_list = tuple(str(wnid) for wnid in value.get("class_list", names))
        tree = tuple(tuple(int(index) for index in chain) for chain in value.get("class_tree_list", ()))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # also of tensors in place of numbers
        raise InputError(
            f"{path}: 'class_list' or 'class_tree_list' is no list of ids or of chains of indices "
            f"({reason_of(error)}); get the class tree again"
        ) from error
    return ClassTree(class_list, dict(names), tree)
