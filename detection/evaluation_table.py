"""One table of all metrics of an evaluation, with the published ones of the same config beside them."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["published_numbers", "results_table"]

_SIX = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_COLUMNS = (*_SIX, "APr", "APc", "APf", "AP50-seen", "AP50-unseen", "AP50_expand", "AP50_segm")
_NAMES = {
    "AP50-seen": "AP50 seen",
    "AP50-unseen": "AP50 unseen",
    "AP50_expand": "AP50 expanded",
    "AP50_segm": "AP50 mask",
}
_TASKS = {"bbox": "box", "segm": "mask"}

_LVIS, _COCO, _O365, _OID = "lvis_v1_val", "coco_generalized_zeroshot_val", "objects365_v2_val", "oid_val_expanded"
_R50 = "CLIP_R5021k_640b64_4x"
_SWIN = "CLIP_SwinB_896b32_4x"
_NOTES = {
    _COCO: "80 class names, of which the ground truth has 65; coco_2017_val has them all",
    _O365: "80,000 images",
}


def _rare(ap: float, rare: float) -> dict[str, Any]:
    """Masks on LVIS, as in the model zoo of Detic (arXiv 2201.02605)."""
    return {_LVIS: {"segm": {"AP": ap, "APr": rare}}}


def _novel(ap50: float, novel: float) -> dict[str, Any]:
    """Boxes of open-vocabulary COCO, as in the model zoo of Detic."""
    return {_COCO: {"bbox": {"AP50": ap50, "AP50-unseen": novel}}}


def _cross(o365: float, oid: float) -> dict[str, Any]:
    """Boxes of other data sets, as in the model zoo of Detic."""
    return {_O365: {"bbox": {"AP": o365}}, _OID: {"bbox": {"AP50_expand": oid}}}


def _by_frequency(box: tuple[float, ...], mask: tuple[float, ...]) -> dict[str, Any]:
    """POMP (arXiv 2304.04704), table 7."""
    keys = ("APr", "APc", "APf", "AP")
    return {_LVIS: {"bbox": dict(zip(keys, box, strict=True)), "segm": dict(zip(keys, mask, strict=True))}}


def _transfer(lvis: tuple[float, ...], coco: tuple[float, ...], o365: tuple[float, ...]) -> dict[str, Any]:
    """POMP, table 6: boxes of the source data set and of two others."""
    sets = zip((_LVIS, _COCO, _O365), (lvis, coco, o365), strict=True)
    return {name: {"bbox": dict(zip(_SIX, values, strict=True))} for name, values in sets}


_POMP_TRANSFER = _transfer(
    (37.2, 51.1, 39.3, 26.5, 47.2, 52.6), (40.3, 57.9, 43.6, 28.3, 43.9, 50.6), (16.1, 22.9, 17.3, 6.2, 16.3, 24.7)
)
_DETIC_TRANSFER = _transfer(
    (36.8, 50.7, 38.6, 26.1, 46.7, 51.7), (38.8, 56.0, 41.9, 25.6, 42.2, 50.0), (15.6, 22.1, 16.8, 6.1, 15.6, 23.8)
)
_DETIC_TRANSFER[_LVIS] |= _rare(33.2, 29.7)[_LVIS]
_PUBLISHED: dict[str, dict[str, Any]] = {
    f"Detic_LbaseI_{_R50}_ft4x_max-size": _by_frequency((26.7, 36.4, 40.3, 36.3), (24.9, 32.5, 35.6, 32.4)),
    f"Detic_LbaseI_{_R50}_ft4x_max-size_pomp": _by_frequency((26.8, 36.4, 40.4, 36.2), (25.2, 33.0, 35.6, 32.7)),
    f"Detic_LI_{_R50}_ft4x_max-size": _DETIC_TRANSFER,
    f"Detic_LI_{_R50}_ft4x_max-size_pomp": _POMP_TRANSFER,
    f"Detic_LI_{_R50}_ft4x_max-size_pomp_cross_datasets": _POMP_TRANSFER,
    f"BoxSup-C2_Lbase_{_R50}": _rare(30.2, 16.4),
    f"BoxSup-C2_L_{_R50}": _rare(31.5, 25.6),
    f"Detic_LbaseCCimg_{_R50}_ft4x_max-size": _rare(31.0, 19.8),
    f"Detic_LbaseCCcapimg_{_R50}_ft4x_max-size": _rare(31.0, 21.3),
    f"BoxSup-C2_Lbase_{_SWIN}": _rare(38.4, 21.9),
    f"Detic_LbaseI_{_SWIN}_ft4x_max-size": _rare(40.7, 33.8),
    f"BoxSup-C2_L_{_SWIN}": {**_rare(40.7, 35.9), **_cross(19.1, 46.2)},
    f"Detic_LI_{_SWIN}_ft4x_max-size": {**_rare(41.7, 41.7), **_cross(21.2, 53.0)},
    f"Detic_LI21k_{_SWIN}_ft4x_max-size": _cross(21.4, 55.2),
    f"Detic_LCOCOI21k_{_SWIN}_ft4x_max-size": _cross(21.6, 54.6),
    "BoxSup_OVCOCO_CLIP_R50_1x": _novel(39.3, 1.3),
    "Detic_OVCOCO_CLIP_R50_1x_max-size": _novel(44.7, 24.1),
    "Detic_OVCOCO_CLIP_R50_1x_caption": _novel(43.8, 21.0),
    "Detic_OVCOCO_CLIP_R50_1x_max-size_caption": _novel(45.0, 27.8),
    "CenterNet2_R50_1x": {"coco_2017_val": {"bbox": {"AP": 42.9}}},
    "CenterNet2-F_R50_1x": {"coco_2017_val": {"bbox": {"AP": 41.7}}},
    "CenterNet-FPN_R50_1x": {"coco_2017_val": {"bbox": {"AP": 40.2}}},
    "CenterNet-S4_DLA_8x": {"coco_2017_val": {"bbox": {"AP": 42.5}}},
    "LVIS_CenterNet2_R50_1x": {_LVIS: {"bbox": {"AP": 26.5}}},
    "LVIS_CenterNet2_R50_Fed_1x": {_LVIS: {"bbox": {"AP": 28.3}}},
    "O365_CenterNet2_R50_1x": {"objects365_val": {"bbox": {"AP": 22.6}}},
}


def published_numbers(config_name: str, data_set: str, task: str) -> dict[str, float]:
    """Metrics in percent that were published for a config on a data set; empty if none were.

    Args:
        config_name: file name of the config without ending.
        task: ``bbox`` or ``segm``.
    """
    return _PUBLISHED.get(config_name, {}).get(data_set, {}).get(task, {})


def results_table(results: Mapping[str, Mapping[str, Mapping[str, float]]], config_name: str = "") -> str:
    """A markdown table in percent: a row per data set and task, and below it the published one if there is one.

    Args:
        results: data set -> task -> metric -> value, as the evaluators return them.
        config_name: of the published numbers.
    """
    rows: list[tuple[str, str, str, Mapping[str, float]]] = []
    for data_set, tasks in results.items():
        for task, metrics in tasks.items():
            rows.append((data_set, _TASKS.get(task, task), "here", _in_percent(metrics)))
            published = published_numbers(config_name, data_set, task)
            if published:
                rows.append(("", "", "published", published))
    columns = [name for name in _COLUMNS if any(name in row[3] for row in rows)]
    lines = [["data set", "task", "", *(_NAMES.get(name, name) for name in columns)]]
    lines.append(["---", "---", "---", *("---:" for _ in columns)])
    for data_set, task, who, metrics in rows:
        lines.append([data_set, task, who, *(_number(metrics.get(name)) for name in columns)])
    notes = [f"\n{name}: {note}." for name, note in _NOTES.items() if name in results]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + notes)


def _in_percent(metrics: Mapping[str, float]) -> dict[str, float]:
    # Open Images' evaluation alone returns fractions, as published; it has no "AP".
    factor = 1.0 if "AP" in metrics else 100.0
    return {name: value * factor for name, value in metrics.items()}


def _number(value: float | None) -> str:
    """Metrics of groups without ground truth are NaN or -100."""
    if value is None:
        return ""
    return "n/a" if math.isnan(value) or value < 0 else f"{value:.1f}"
