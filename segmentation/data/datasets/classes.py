"""What is known of the classes of the segmentation sets: names, splits, seen ones."""

from collections.abc import Callable
from typing import Any

from prompt_pretrain.metadata import read_metadata
from prompt_pretrain.vocabulary import load_vocabulary

__all__ = ["ade20k_full_facts", "coco_stuff_facts", "pascal_context_facts", "voc_facts"]

Facts = dict[str, Any]


def coco_stuff_facts(part: str = "all") -> Callable[[], Facts]:
    """Of COCO-Stuff ("all"), or of its seen ("base") or unseen ("novel") classes alone.

    COCO's category ids stand in ``stuff_dataset_id_to_contiguous_id``.
    """

    def read() -> Facts:
        splits = load_vocabulary("coco_stuff").splits
        unseen = set(splits["unseen"])
        sets = {
            "base": list(splits["seen"]),
            "novel": list(splits["unseen"]),
            "novel_thing": sorted(unseen & set(splits["thing"])),
            "novel_stuff": sorted(unseen & set(splits["stuff"])),
        }
        ids = read_metadata("segmentation_classes.json")["coco_stuff_171"]["dataset_id"]
        rows, facts = _facts("coco_stuff", part, sets)
        return facts | {"stuff_dataset_id_to_contiguous_id": {ids[row]: label for label, row in enumerate(rows)}}

    return read


def voc_facts(part: str = "all") -> Callable[[], Facts]:
    """Of VOC 2012 ("all"), or of its seen ("base") or unseen ("novel") classes alone."""
    return lambda: _facts("voc", part, {"base": list(load_vocabulary("voc").splits["seen"])})[1]


def pascal_context_facts() -> Facts:
    """Of PASCAL-Context's 59 classes: a target of open-vocabulary models only, so none is seen."""
    return {"stuff_classes": list(load_vocabulary("pcontext").class_names)}


def ade20k_full_facts() -> Facts:
    """Of ADE20K's 847 classes."""
    return {"stuff_classes": list(load_vocabulary("ade20k_full").class_names)}


def _facts(vocabulary: str, part: str, sets: dict[str, list[int]]) -> tuple[list[int], Facts]:
    """(rows of the vocabulary, facts) of one part; ``sets`` are the evaluation sets of the whole."""
    names, splits = load_vocabulary(vocabulary).class_names, load_vocabulary(vocabulary).splits
    rows = {"all": list(range(len(names))), "base": list(splits["seen"]), "novel": list(splits["unseen"])}[part]
    seen = set(splits["seen"])
    facts: Facts = {"stuff_classes": [names[row] for row in rows], "trainable_flag": [int(row in seen) for row in rows]}
    if part == "all":
        facts["evaluation_set"] = sets
    elif part == "base":
        facts["evaluation_set"] = {"base": list(range(len(rows)))}
    return rows, facts
