"""Training targets that know the class tree: a class's parents count as right too, or share in its probability.

The paper names flat labels as a limitation: a photo of a "sea lion" also shows an "eared seal". Both ways to use the
tree turn the one-hot target into a distribution, so they need the softmax over all classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_pretrain.classification.class_tree import ClassTree, read_class_tree
from prompt_pretrain.classification.imagenet import TREE_FILE
from prompt_pretrain.classification.items import ClassificationData
from prompt_pretrain.errors import InputError

MODES = ("none", "positives", "smooth")


@dataclass(frozen=True, eq=False)
class LabelHierarchy:
    """Target distributions of N classes over these and some more.

    Attributes:
        extra_names: classes that join the softmax behind the N: parents that are no classes themselves.
        ids: (N, R) int64 classes with a share in each class's target, padded. weights: (N, R), rows sum to 1.
    """

    extra_names: tuple[str, ...]
    ids: Tensor
    weights: Tensor

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) cross entropy of (B, N + extra) logits with the target distributions of ``labels`` (B,)."""
        rows = labels.to(self.ids.device)
        ids, weights = self.ids[rows].to(logits.device), self.weights[rows].to(logits.device)
        return -(weights * F.log_softmax(logits.float(), dim=1).gather(1, ids)).sum(dim=1)

    @property
    def num_classes(self) -> int:
        """N, without the extra classes."""
        return len(self.ids)


def cross_entropy(logits: Tensor, labels: Tensor, hierarchy: LabelHierarchy | None) -> tuple[Tensor, Tensor]:
    """(B,) losses over all classes, and (B,) whether the own class scores highest among the classes proper."""
    if hierarchy is None:
        return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(dim=1) == labels
    return hierarchy.losses(logits, labels), logits[:, : hierarchy.num_classes].argmax(dim=1) == labels


def read_hierarchy(data: ClassificationData, mode: str, *, weight: float, levels: int) -> LabelHierarchy | None:
    """The hierarchy of a data set from the class tree beside its images; None for mode ``none``.

    Args:
        mode: ``positives``: the ``levels`` nearest parents, without the root, share the target equally with the class;
            a parent that is no class of the data set joins the softmax under its own name. ``smooth``: ``weight`` of
            the target is spread evenly over the parent, if it is a class, and the other classes below that parent.
    Raises:
        InputError: no tree there, or one that lacks a class.
    """
    if mode == "none":
        return None
    path = Path(data.root) / TREE_FILE
    tree = read_class_tree(path)
    chains = _chains(tree, data.folders, path)
    if mode == "smooth":
        return _smoothed(chains, tree, data, weight)
    return _positives(chains, tree, data, levels)


def _chains(tree: ClassTree, folders: Sequence[str], path: Path) -> list[list[str]]:
    """For each class the ids of its parents, nearest first, without the root."""
    place = {wnid: index for index, wnid in enumerate(tree.class_list)}
    missing = next((wnid for wnid in folders if wnid not in place), None)
    if missing is not None or not folders or len(tree.class_tree_list) < len(tree.class_list):
        lacks = f"no class {missing}" if missing else "no 'class_tree_list' for this data set"
        raise InputError(f"{path} has {lacks}; get the class tree of this data set, or set TRAINER.HIERARCHY.MODE none")
    return [[tree.class_list[node] for node in tree.class_tree_list[place[wnid]][1:-1]] for wnid in folders]


def _positives(chains: list[list[str]], tree: ClassTree, data: ClassificationData, levels: int) -> LabelHierarchy:
    own = {wnid: label for label, wnid in enumerate(data.folders)}
    extra: dict[str, int] = {}
    rows = []
    for label, chain in enumerate(chains):
        parents = [own[p] if p in own else extra.setdefault(p, data.num_classes + len(extra)) for p in chain[:levels]]
        rows.append({member: 1 / (1 + len(parents)) for member in (label, *parents)})
    return _hierarchy(tuple(tree.class_description.get(wnid, wnid) for wnid in extra), rows)


def _smoothed(chains: list[list[str]], tree: ClassTree, data: ClassificationData, weight: float) -> LabelHierarchy:
    own = {wnid: label for label, wnid in enumerate(data.folders)}
    below: dict[str, list[int]] = {}
    for label, chain in enumerate(chains):
        if chain:
            below.setdefault(chain[0], []).append(label)
    rows = []
    for label, chain in enumerate(chains):
        related = [other for other in below[chain[0]] if other != label] if chain else []
        related += [own[chain[0]]] if chain and chain[0] in own else []
        share = weight if related else 0.0
        rows.append({label: 1 - share} | {other: share / len(related) for other in related})
    return _hierarchy((), rows)


def _hierarchy(extra_names: tuple[str, ...], rows: list[dict[int, float]]) -> LabelHierarchy:
    width = max(map(len, rows))
    padded = [[*row, *[0] * (width - len(row))] for row in rows]
    weights = [[*row.values(), *[0.0] * (width - len(row))] for row in rows]
    return LabelHierarchy(extra_names, torch.tensor(padded), torch.tensor(weights))
