"""The evaluator of mask classification (stage 1): one label for each masked image."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from prompt_pretrain.errors import InputError

__all__ = ["ClassificationEvaluator"]

_TOP = (1, 5)


class ClassificationEvaluator(DatasetEvaluator):
    """Top-1 and top-5 accuracy in percent.

    ``macc_top1`` is over images, ``mmacc_top1`` the mean over all classes of the data set, absent ones as 0;
    ``acc_top1_<class>`` of each class, ``acc_top1_<set>`` and ``acc_top1_w/o_<set>`` over the images inside and
    outside of each of the metadata's ``evaluation_set``.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, output_dir: str | None = None) -> None:
        """``output_dir`` is there for the common interface; nothing is written."""
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._class_names: list[str] = list(metadata.get("stuff_classes") or metadata.get("thing_classes"))
        self._evaluation_sets: Mapping[str, Sequence[int]] = metadata.get("evaluation_set") or {}
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._logits: list[Tensor] = []
        self._labels: list[int] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Keep the logits of a batch.

        Args:
            inputs: dicts whose "instances" have gt_classes, or that have a "category_id".
            outputs: dicts with "classification", logits (1, C) or (C,).
        Raises:
            InputError: another number of classes.
        """
        for record, output in zip(inputs, outputs, strict=True):
            logits = output["classification"].flatten().float().cpu()
            if len(logits) != len(self._class_names):
                raise InputError(
                    f"the model scores {len(logits)} classes, data set {self._dataset_name} has "
                    f"{len(self._class_names)}; give the model this vocabulary"
                )
            self._logits.append(logits)
            has_instances = "instances" in record and len(record["instances"])
            label = record["instances"].gt_classes[0] if has_instances else record["category_id"]
            self._labels.append(int(label))

    def evaluate(self) -> dict[str, float] | None:
        """Metric to percent on the main process, None on the others."""
        logits = torch.stack(self._logits) if self._logits else torch.zeros(0, len(self._class_names))
        hits, labels = _top_hits(logits, torch.tensor(self._labels, dtype=torch.int64)), self._labels
        if self._distributed:
            gathered = comm.all_gather((hits, labels))
            if not comm.is_main_process():
                return None
            hits = torch.cat([part for part, _ in gathered])
            labels = [label for _, part in gathered for label in part]
        return OrderedDict(self._metrics(hits.double(), torch.tensor(labels, dtype=torch.int64)))

    def _metrics(self, hits: Tensor, labels: Tensor) -> dict[str, float]:
        """``hits`` (N, 2): whether the label is among the best 1 and 5."""
        results = {f"macc_top{k}": _percent(hits[:, i]) for i, k in enumerate(_TOP)}
        totals = dict.fromkeys(_TOP, 0.0)
        for label, name in enumerate(self._class_names):
            own = hits[labels == label]
            for i, k in enumerate(_TOP):
                results[f"acc_top{k}_{name}"] = _percent(own[:, i]) if len(own) else 0.0
                totals[k] += results[f"acc_top{k}_{name}"]
        for name, indices in self._evaluation_sets.items():
            inside = torch.isin(labels, torch.tensor(list(indices), dtype=torch.int64))
            results[f"acc_top1_{name}"] = _percent(hits[inside, 0])
            results[f"acc_top1_w/o_{name}"] = _percent(hits[~inside, 0])
        return results | {f"mmacc_top{k}": total / len(self._class_names) for k, total in totals.items()}


def _top_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, 2) bool: the label (N,) is among the best 1 and 5 of logits (N, C)."""
    best = logits.topk(min(max(_TOP), logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, :k].any(1) for k in _TOP], 1)


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.mean()) if len(hits) else math.nan
