"""Which classes a batch of inputs is about."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detectron2.data import MetadataCatalog
from prompt_pretrain.errors import InputError

__all__ = ["BatchVocabulary"]


class BatchVocabulary:
    """Class names of the data set named by a batch, or of a vocabulary set by hand."""

    def __init__(self) -> None:
        self._fixed: tuple[list[str], Tensor] | None = None

    def set(self, class_names: Sequence[str] | None, seen: Sequence[int] | None = None) -> None:
        """Use these classes for every batch; None goes back to the data sets.

        Raises:
            InputError: no class, an empty or repeated name, or not one flag per class.
        """
        if class_names is None:
            self._fixed = None
            return
        names = [name.strip() for name in class_names]
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if not names or "" in names or repeated:
            found = f"repeat {', '.join(map(repr, repeated[:3]))}" if names and repeated else f"are {names[:3]}"
            raise InputError(f"classes to segment {found}; give at least one, none of them empty or repeated")
        flags = [0] * len(names) if seen is None else list(seen)
        if len(flags) != len(names):
            raise InputError(f"{len(flags)} flags of seen classes for {len(names)} classes; give one for each")
        self._fixed = (names, torch.tensor(flags, dtype=torch.float32))

    def of(self, batched_inputs: Sequence[dict[str, Any]]) -> tuple[list[str], Tensor]:
        """K class names without blanks around them, and (K,) 1 for seen classes; without flags all are unseen.

        Raises:
            InputError: inputs of no or of several data sets, or flags for another number of classes.
        """
        if self._fixed is not None:
            return self._fixed
        names = {x.get("meta", {}).get("dataset_name") for x in batched_inputs}
        if len(names) != 1 or None in names:
            raise InputError(
                f"one batch must name one data set in meta['dataset_name'], found {sorted(map(str, names))}; use the "
                "loaders of segmentation, or set_classes"
            )
        (name,) = names
        metadata = MetadataCatalog.get(name)
        classes = metadata.get("stuff_classes")
        if not classes:
            raise InputError(f"data set {name} has no stuff_classes in its metadata; register them")
        flags = metadata.get("trainable_flag") or [0] * len(classes)
        if len(flags) != len(classes):
            raise InputError(
                f"data set {name} has {len(classes)} stuff_classes but {len(flags)} entries in trainable_flag"
            )
        return [str(entry).strip() for entry in classes], torch.tensor(list(flags), dtype=torch.float32)
