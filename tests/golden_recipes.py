"""Recipes that the ``centernet_*`` and ``detic_*`` goldens share: how inputs are made and how results are compared.

``tests/golden/README.md`` describes them under "Recipes of the detection goldens".
"""

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances, PolygonMasks
from tests.golden.fill import fill
from tests.golden_files import GOLDEN_FOLDER, Golden

RELEASED_CONFIGS = GOLDEN_FOLDER / "reference" / "detic_config_defaults.json.gz"


def recorded_image(seed: int, height: int, width: int) -> Tensor:
    """(3, height, width) float32 in [0, 255]: noise over tiles of 16 x 16 pixels, channels ordered as by the config."""
    generator = np.random.RandomState(seed)
    coarse = generator.randint(0, 256, (3, -(-height // 16), -(-width // 16)))
    tiles = np.kron(coarse, np.ones((1, 16, 16)))[:, :height, :width]
    image = 0.75 * tiles + 0.25 * generator.randint(0, 256, (3, height, width))
    return torch.from_numpy(image.astype(np.float32))


def recorded_images(golden: Golden) -> list[Tensor]:
    """The images of the field ``images``."""
    return [recorded_image(image["seed"], *image["size"]) for image in golden.meta["images"]]


def recorded_ground_truth(golden: Golden, sizes: Sequence[Sequence[int]], with_masks: bool = False) -> list[Instances]:
    """Per image (height, width) the objects of ``gt_boxes`` and ``gt_classes``.

    The mask of an object is its box with the lower right corner cut to the middle of the right and the lower edge
    (``gt_masks``).
    """
    targets = []
    for size, boxes, classes in zip(sizes, golden.meta["gt_boxes"], golden.meta["gt_classes"], strict=True):
        target = Instances(tuple(size))
        target.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        target.gt_classes = torch.tensor(classes, dtype=torch.int64)
        if with_masks:
            target.gt_masks = PolygonMasks(
                [
                    [np.array([x0, y0, x1, y0, x1, (y0 + y1) / 2, (x0 + x1) / 2, y1, x0, y1], dtype=np.float64)]
                    for x0, y0, x1, y1 in boxes
                ]
            )
        targets.append(target)
    return targets


def write_category_counts(file: Path, counts: Sequence[int]) -> Path:
    """A category-frequency file in which the category of id i + 1 is in ``counts[i]`` images; ids are out of order."""
    entries = [{"id": i + 1, "image_count": int(count)} for i, count in enumerate(counts)]
    file.write_text(json.dumps(entries[1::2] + entries[::2]))
    return file


def fill_by_rules(module: nn.Module, recipe: Mapping[str, Any]) -> None:
    """Fill ``module`` but for the names in ``recipe["skip"]``, then apply the rules of ``recipe["post"]`` in order.

    A rule is ``[substring, "mul" or "set", value]`` and changes the entries of the state dict whose name holds it.
    """
    fill(module, skip=recipe.get("skip", ()))
    entries = module.state_dict()
    for substring, operation, value in recipe.get("post", ()):
        for name in (name for name in entries if substring in name):
            {"mul": entries[name].mul_, "set": entries[name].fill_}[operation](value)


def apply_settings(cfg: CfgNode, settings: Mapping[str, Any]) -> CfgNode:
    """Set full keys such as ``MODEL.WEIGHTS`` in place, with the type rules of merging; returns ``cfg``."""
    cfg.merge_from_list([part for setting in settings.items() for part in setting])
    return cfg


def released_settings(name: str) -> dict[str, Any]:
    """What the released config ``name`` (a prefix ending in ":" and words after the name don't count) sets.

    The values are those that differ from the defaults with the keys of CenterNet2 and, for a config of Detic, of Detic.
    """
    published = json.loads(gzip.decompress(RELEASED_CONFIGS.read_bytes()))
    key = name.split(":")[-1].split()[0]
    return next(
        published[group][key] for group in published if group.startswith("configs_") and key in published[group]
    )


def close(golden: Golden, found: Tensor | np.ndarray | float | Sequence[float], name: str) -> None:
    """``found`` equals the array ``name`` of the golden: floats within its tolerance, integers exactly."""
    expected = torch.from_numpy(golden.arrays[name])
    actual = torch.as_tensor(found).detach().to(expected.dtype).reshape(expected.shape)
    exact = not expected.is_floating_point()
    limits = {"rtol": 0.0, "atol": 0.0} if exact else tolerance(golden)
    assert_close(actual, expected, **limits, msg=lambda text: f"{golden.name} {name}: {text}")


def tolerance(golden: Golden) -> dict[str, float]:
    """``rtol`` and ``atol`` of the golden."""
    return {key: golden.meta["tolerance"][key] for key in ("rtol", "atol")}


def close_in_brief(golden: Golden, found: Tensor, name: str) -> None:
    """``found`` equals the tensor that the golden stores as ``name.shape``, ``name.sample`` and ``name.stats``.

    The sample holds values at even distances; stats are sum, L2 norm, minimum and maximum in float64.
    """
    assert list(found.shape) == golden.arrays[f"{name}.shape"].tolist(), f"{golden.name} {name}"
    values = found.detach().flatten()
    positions = np.linspace(0, values.numel() - 1, len(golden.arrays[f"{name}.sample"])).astype(np.int64)
    close(golden, values[torch.from_numpy(positions)], f"{name}.sample")
    values = values.double()
    rtol, atol = tolerance(golden).values()
    # What an element may be off by, summed up: all errors may have one sign.
    limits = (
        rtol * values.abs().sum().item() + atol * values.numel(),
        rtol * values.norm().item() + atol * values.numel() ** 0.5,
        *(rtol * extreme.abs().item() + atol for extreme in values.aminmax()),
    )
    stats = (values.sum(), values.norm(), values.min(), values.max())
    for label, stat, expected, limit in zip(
        ("sum", "norm", "minimum", "maximum"), stats, golden.arrays[f"{name}.stats"], limits, strict=True
    ):
        assert abs(stat.item() - expected) <= limit, f"{golden.name} {name}: {label} {stat.item()}, expected {expected}"


def close_detections(
    golden: Golden, prefix: str, boxes: Tensor, scores: Tensor, classes: Tensor | None = None, tie: float | None = None
) -> None:
    """Detections sorted by score equal the arrays ``prefix.boxes``, ``.scores``, ``.classes`` and, if any, ``.count``.

    The golden may hold the first ones only; ``.all_scores`` then holds every score, and ``.scores`` may hold more than
    ``.boxes``. Detections whose scores differ by less than ``tie`` (by default as its field ``ordering`` says, else 0)
    and the tolerance may swap places.
    """
    recorded = {key: torch.from_numpy(golden.arrays[f"{prefix}.{key}"]) for key in ("boxes", "scores")}
    if classes is not None:
        recorded["classes"] = torch.from_numpy(golden.arrays[f"{prefix}.classes"])
    count = golden.arrays.get(f"{prefix}.count")
    all_scores = f"{prefix}.all_scores"
    if count is not None:
        assert len(scores) == count.item(), f"{golden.name} {prefix}: {len(scores)} detections, expected {count.item()}"
    elif all_scores not in golden.arrays:
        assert len(scores) == len(recorded["scores"]), f"{golden.name} {prefix}: {len(scores)} detections"
    if all_scores in golden.arrays:
        close(golden, scores, all_scores)
    close(golden, scores[: len(recorded["scores"])], f"{prefix}.scores")

    rtol, atol = tolerance(golden).values()
    tie = stated_tie(golden) if tie is None else tie
    free = torch.ones(len(scores), dtype=torch.bool)
    for i, box in enumerate(recorded["boxes"]):
        near = (scores - scores[i]).abs() <= max(tie, 0.0) + (atol if tie else 0.0)
        near[i] = True
        same = (boxes - box).abs().le(atol + rtol * box.abs()).all(dim=1)
        if classes is not None:
            same &= classes == recorded["classes"][i]
        fitting = (free & near & same).nonzero().flatten()
        assert len(fitting), f"{golden.name} {prefix}: no detection like number {i}, {box.tolist()}; there: {boxes[i]}"
        free[fitting[0]] = False


def stated_tie(golden: Golden) -> float:
    """Difference of scores below which the golden lets detections swap places; 0 when it says nothing."""
    stated = re.search(r"less than ([\d.e-]+) may swap", golden.meta.get("ordering", ""))
    return float(stated[1]) if stated else 0.0
