"""Finding and loading golden files: ``@pytest.mark.golden(KIND)`` runs a test once per file of that kind.

A golden file is ``KIND.json`` (the recipe) with or without ``KIND.npz`` (the numbers). Files may carry a suffix after
the kind (``pomp_loss_2``, ``pomp_loss-b``, ``pomp_loss.v2``), so that several of one kind fit into one folder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN_FOLDER = Path(__file__).parent / "golden"
KINDS = (
    "pomp_loss",
    "pomp_misc",
    "prompt_baselines",
    "rpl_prompt",
    "d2_transforms",
    "d2_data",
    "d2_backbones",
    "d2_boxes_layers",
    "d2_roi_pooler",
    "d2_box_heads",
    "d2_masks",
    "d2_rcnn",
    "d2_config",
    "d2_checkpoint",
    "d2_solver",
    "d2_events_trainer",
    "d2_coco_eval",
    "d2_lvis_eval",
    "d2_sem_seg_eval",
    "zsseg_backbone",
    "zsseg_head",
    "zsseg_criterion",
    "zsseg_clip_small",
    "zsseg_crops",
    "zsseg_full_R50",
    "zsseg_full_R101c_learnable",
    "zsseg_stage1",
    "zsseg_tta",
    "zsseg_evaluator",
    "zsseg_mapper",
    "zsseg_solver",
    "maskformer_full_R50",
    "maskformer_swin",
    "centernet_head",
    "centernet_targets",
    "centernet_losses",
    "centernet_decode",
    "centernet2_r50",
    "detic_oid_eval",
    "detic_data",
    "detic_backbones",
    "detic_r50_eval",
    "detic_r50_train",
    "detic_ovcoco_c4",
    "detic_zero_shot",
    "detic_box_losses",
    "detic_image_losses",
    "detic_cascade",
)
_REFERENCE = "reference"  # sub-folders of this name hold files that goldens refer to, not goldens


class Arrays(dict[str, np.ndarray]):
    """Arrays by name. ``unread`` are the names that nobody has asked for yet by ``[name]`` or ``get``."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.unread = set(self)

    def __getitem__(self, name: str) -> np.ndarray:
        self.unread.discard(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.unread.discard(name)
        return super().get(name, default)


@dataclass(frozen=True)
class Golden:
    """One golden file. ``path`` is the file without its ending."""

    path: Path
    kind: str

    @property
    def name(self) -> str:
        """The kind with its suffix, if any: the file name without its ending."""
        return self.path.name

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Content of the json; empty when there is none."""
        file = self._file(".json")
        try:
            return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from error

    @cached_property
    def arrays(self) -> Arrays:
        """Content of the npz, loaded without pickling; empty when there is none."""
        file = self._file(".npz")
        if not file.exists():
            return Arrays({})
        with np.load(file, allow_pickle=False) as archive:
            return Arrays(archive)

    def sibling(self, kind: str) -> "Golden":
        """The golden of another kind that this one refers to: same folder and suffix, then same folder, then ours."""
        suffix = self.name.removeprefix(self.kind)
        folder = self.path.parent
        candidates = [folder / f"{kind}{suffix}", folder / kind, GOLDEN_FOLDER / kind]
        return next((Golden(path, kind) for path in candidates if _is_golden(path)), Golden(candidates[-1], kind))

    def reference(self, name: str) -> Path:
        """The file that the json refers to by ``name``, of which only the last part counts.

        Looked for in ``reference/`` beside this golden, beside it, and in ``tests/golden/reference``.
        """
        file = Path(name).name
        folders = [self.path.parent / _REFERENCE, self.path.parent, GOLDEN_FOLDER / _REFERENCE]
        for folder in folders:
            if (folder / file).is_file():
                return folder / file
        raise FileNotFoundError(f"{self.path} refers to {name}, which is in none of {', '.join(map(str, folders))}")

    def _file(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)  # with_suffix would cut `pomp_loss.v2`


def kind_of(name: str) -> str | None:
    """The longest known kind that ``name`` equals or extends by a suffix starting with ``_``, ``-`` or ``.``."""
    fitting = [kind for kind in KINDS if name == kind or (name.startswith(kind) and name[len(kind)] in "_-.")]
    return max(fitting, key=len, default=None)


def find_goldens(folder: Path) -> list[Golden]:
    """All golden files of known kinds at any depth of ``folder``, sorted by path."""
    paths = {
        file.with_name(file.name[: -len(file.suffix)])
        for file in folder.rglob("*")
        if file.suffix in (".json", ".npz") and _REFERENCE not in file.relative_to(folder).parts[:-1]
    }
    return [Golden(path, kind) for path in sorted(paths) if (kind := kind_of(path.name))]


def _is_golden(path: Path) -> bool:
    return any(path.with_name(path.name + ending).is_file() for ending in (".json", ".npz"))
