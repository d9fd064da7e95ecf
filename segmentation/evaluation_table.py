"""One table of all metrics of an evaluation, with the published ones of the same config beside them."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["published_numbers", "results_table"]

# Metric of the evaluators -> heading. "base" is the set of seen classes.
_COLUMNS = {
    "hIoU-base": "hIoU",
    "mIoU-base": "seen mIoU",
    "mIoU-unbase": "unseen mIoU",
    "mIoU": "mIoU",
    "fwIoU": "fwIoU",
    "mACC": "mACC",
    "pACC": "pACC",
    "macc_top1": "top-1",
    "macc_top5": "top-5",
    "acc_top1_base": "seen top-1",
    "acc_top1_w/o_base": "unseen top-1",
}
_TTA = "_TTA"

_COCO, _VOC = "coco_2017_test_stuff_sem_seg", "voc_sem_seg_test"
_ADE, _CONTEXT = "ade20k_sem_seg_val", "pcontext_sem_seg_val"
_TABLE_4 = ("hIoU-base", "mIoU-base", "mIoU-unbase")
_TABLE_5 = ("mIoU", "fwIoU", "pACC")
_TABLE_13 = ("mIoU", "fwIoU", "mACC", "pACC")


def _row(data_set: str, metrics: tuple[str, ...], *values: float) -> dict[str, dict[str, float]]:
    return {data_set: dict(zip(metrics, values, strict=True))}


_SEEN, _ALL = "coco-stuff-164k-156/zero_shot_maskformer_R101c", "coco-stuff-164k-171/zero_shot_maskformer_R101c"
_VOC_SEEN, _ADE_150 = "voc-11k-15/zero_shot_maskformer_R101c", "ade20k-150/cross_dataset"
_CONTEXT_59 = "pcontext-59/cross_dataset"
# Tables 4, 5 and 13 of POMP (arXiv 2304.04704).
_PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    f"{_SEEN}_bs32_60k": _row(_COCO, _TABLE_4, 37.8, 39.3, 36.3),
    f"{_SEEN}_pomp_prompt_bs32_60k": _row(_COCO, _TABLE_4, 39.1, 39.9, 38.2),
    f"{_VOC_SEEN}_bs16_20k": _row(_VOC, _TABLE_4, 77.5, 83.5, 72.5),
    f"{_VOC_SEEN}_bs16_20k_zsseg": _row(_VOC, _TABLE_4, 77.5, 83.5, 72.5),
    f"{_VOC_SEEN}_pomp_prompt_bs16_20k": _row(_VOC, _TABLE_4, 84.4, 93.6, 76.8),
    f"{_ALL}_bs32_60k": _row(_COCO, _TABLE_5, 40.8, 49.0, 62.7),
    f"{_ALL}_pomp_prompt_bs32_60k": _row(_COCO, _TABLE_5, 41.1, 49.2, 62.9),
    f"{_ADE_150}_learned_prompt_test_only": _row(_ADE, _TABLE_5, 19.5, 48.7, 60.0),
    f"{_ADE_150}_pomp_prompt_test_only": _row(_ADE, _TABLE_5, 20.7, 51.5, 63.7),
    f"{_CONTEXT_59}_learned_prompt_test_only": _row(_CONTEXT, _TABLE_5, 50.8, 64.1, 75.7),
    f"{_CONTEXT_59}_pomp_prompt_test_only": _row(_CONTEXT, _TABLE_5, 51.1, 65.4, 76.1),
    f"{_ALL}_single_prompt_bs32_60k": _row(_COCO, _TABLE_13, 40.5, 47.8, 53.5, 61.7),
    f"{_ALL}_imagenet_prompt_bs32_60k": _row(_COCO, _TABLE_13, 40.9, 48.4, 54.7, 62.3),
    f"{_ALL}_vild_prompt_bs32_60k": _row(_COCO, _TABLE_13, 40.9, 48.6, 54.2, 62.3),
    f"{_ADE_150}_single_prompt_test_only": _row(_ADE, _TABLE_13, 17.8, 44.0, 31.0, 52.9),
    f"{_ADE_150}_imagenet_prompt_test_only": _row(_ADE, _TABLE_13, 17.7, 46.5, 31.8, 57.1),
    f"{_ADE_150}_vild_prompt_test_only": _row(_ADE, _TABLE_13, 20.2, 49.1, 33.4, 60.7),
    f"{_CONTEXT_59}_test_only": _row(_CONTEXT, _TABLE_13, 51.8, 63.8, 69.6, 73.8),
}


def published_numbers(config_name: str, data_set: str) -> dict[str, float]:
    """Metrics in percent that were published for a config on a data set; empty if none were.

    Args:
        config_name: folder and file name of the config without ending, as names repeat between folders.
    """
    return _PUBLISHED.get(config_name, {}).get(data_set, {})


def results_table(results: Mapping[str, Mapping[str, Any]], config_name: str = "") -> str:
    """A markdown table in percent: a row per data set, and below it the published one if there is one.

    Args:
        results: data set -> what its evaluator returns: metrics, those of label maps under "sem_seg"; keys of
            augmented evaluations end with "_TTA".
        config_name: of the published numbers.
    """
    rows: list[tuple[str, str, Mapping[str, float]]] = []
    for data_set, found in results.items():
        augmented = any(key.endswith(_TTA) for key in found)
        rows.append((data_set, "here, augmented" if augmented else "here", _metrics(found)))
        published = published_numbers(config_name, data_set)
        if published:
            rows.append(("", "published", published))
    columns = [name for name in _COLUMNS if any(name in row[2] for row in rows)]
    lines = [["data set", "", *(_COLUMNS[name] for name in columns)]]
    lines.append(["---", "---", *("---:" for _ in columns)])
    for data_set, who, metrics in rows:
        lines.append([data_set, who, *(_number(metrics.get(name)) for name in columns)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of one evaluation, whether under the name of a task or not."""
    flat: dict[str, float] = {}
    for key, value in found.items():
        flat |= value if isinstance(value, Mapping) else {key.removesuffix(_TTA): value}
    return flat


def _number(value: float | None) -> str:
    """Metrics of groups without ground truth are NaN."""
    if value is None:
        return ""
    return "n/a" if math.isnan(value) else f"{value:.1f}"
