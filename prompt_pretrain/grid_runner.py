"""Runs a grid: every row with every seed once, one json per result, whatever was interrupted goes on."""

import hashlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.baselines.files import LEARNERS, load_learner
from prompt_pretrain.baselines.setup import train
from prompt_pretrain.baselines.transfer import evaluate_on
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.classification.class_features import ClassFeatureSource
from prompt_pretrain.classification.comparison import compare
from prompt_pretrain.classification.items import ClassificationData
from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.clip import Clip, load_clip
from prompt_pretrain.config import flatten, load_cfg
from prompt_pretrain.errors import InputError
from prompt_pretrain.grids import Grid, GridRow
from prompt_pretrain.pretrain import Progress
from prompt_pretrain.pretraining_setup import (
    ImageFeatures,
    TowerAutocast,
    autocast_dtype,
    load_training_data,
    names_hash,
    precision,
    select_device,
)
from prompt_pretrain.prompt import load_prompt
from prompt_pretrain.templates import load_templates

# What two runs may differ in without differing in results.
_PLACES = ("OUTPUT_DIR", "RESUME", "DATASET.ROOT", "FEATURE_CACHE.FOLDER", "DATALOADER.NUM_WORKERS")

Results = dict[str, list[dict[str, Any]]]


class GridRunner:
    """Trains and evaluates rows of grids below one folder; a setting that stands in several grids is trained once.

    Args:
        folder: image features, runs and results.
        config_folder: where the rows' configs lie.
        data_root: folder of the data sets.
        evaluation: column -> data sets whose accuracies it is the mean of.
        seeds: of the training runs.
        overrides: ``KEY VALUE`` pairs for all rows that are trained.
        workers: processes that read images.
    Raises:
        InputError: no seed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        config_folder: str | os.PathLike,
        data_root: str | os.PathLike,
        evaluation: Mapping[str, Sequence[str]],
        seeds: Sequence[int],
        overrides: Sequence[str] = (),
        workers: int = 0,
    ) -> None:
        if not seeds:
            raise InputError("no seed given; give at least one")
        self.folder, self.config_folder, self.data_root = Path(folder), Path(config_folder), Path(data_root)
        self.evaluation = {column: tuple(names) for column, names in evaluation.items()}
        self.seeds, self.overrides, self.workers = tuple(seeds), tuple(overrides), workers
        self._data: dict[str, ClassificationData] = {}
        self._clips: dict[str, Clip] = {}

    @cached_property
    def cache_folder(self) -> Path:
        return self.folder / "image_features"

    def cfg(self, row: GridRow, seed: int) -> CfgNode:
        """The configuration of a row; a wrong key or value fails here. A row of texts gets POMP's CLIP and places."""
        places = {
            "DATASET.ROOT": str(self.data_root),
            "FEATURE_CACHE.FOLDER": str(self.cache_folder),
            "DATALOADER.NUM_WORKERS": str(self.workers),
            "TEST.NO_TEST": "True",
            # All rows alike: the last epoch, as the published baselines.
            "TEST.SELECTION": "last",
            "TRAIN.TENSORBOARD": "False",
            "SEED": str(seed),
        }
        pairs = [text for pair in places.items() for text in pair]
        return load_cfg(self.config_folder / row.config, [*pairs, *row.overrides, *self.overrides])

    def jobs(self, grid: Grid) -> list[tuple[GridRow, int]]:
        """Every result there is to make: rows without training once, the others per seed, seed by seed."""
        fixed = [(row, 0) for row in grid.rows if row.texts]
        return fixed + [(row, seed) for seed in self.seeds for row in grid.rows if not row.texts]

    def run(self, grid: Grid, announce: Callable[[str], None], progress: Progress | None = None) -> Results:
        """All results by the name of their row, in the order of the rows."""
        clip_row = next(row for row in grid.rows if row.config)
        for row in grid.rows:
            if row.config:
                self.cfg(row, self.seeds[0])  # a wrong key fails before anything is trained
        found: Results = {row.name: [] for row in grid.rows}
        jobs = self.jobs(grid)
        for number, (row, seed) in enumerate(jobs, start=1):
            result = self.result(row, seed, clip_row, progress)
            scores = ", ".join(f"{column} {_shown(value)}" for column, value in result["accuracy"].items())
            announce(f"[{grid.key} {number}/{len(jobs)}] {row.name}" + (f", seed {seed}" * bool(seed)) + f": {scores}")
            if result not in found[row.name]:
                found[row.name].append(result)
        return found

    def result(self, row: GridRow, seed: int, clip_row: GridRow, progress: Progress | None = None) -> dict[str, Any]:
        """Accuracies and costs of one row, from its file or made now.

        Args:
            clip_row: a row with a config, whose CLIP a row of texts uses.
        """
        cfg = self.cfg(row if row.config else clip_row, seed)
        clip = self._clip(cfg)
        key = self._key(row, cfg, clip)
        path = self.folder / "results" / f"{key}.json"
        with suppress(OSError, ValueError):
            return json.loads(path.read_text(encoding="utf-8"))
        found: dict[str, Any] = {"row": row.name, "seed": seed}
        if row.texts:
            found["accuracy"] = self._accuracies(ClassTexts(templates=load_templates(row.texts)), clip)
        else:
            run = cfg.clone()
            run.defrost()
            run.OUTPUT_DIR = str(self.folder / "runs" / key)
            run.freeze()
            self._fill_cache(run, clip)
            with _Costs(clip.device) as costs:
                model = train(run, config_name=Path(row.config).stem, progress=progress).result.last_prompt
            source = load_learner(model, clip) if run.TRAINER.NAME in LEARNERS else ClassTexts(load_prompt(model))
            found |= {"accuracy": self._accuracies(source, clip), "seconds": costs.seconds, "memory_gb": costs.memory}
        write_json(path, found)
        return found

    def _accuracies(self, source: Any, clip: Clip) -> dict[str, float | None]:
        """Mean top-1 of each column in percent; None where the source does not serve the classes."""
        means: dict[str, float | None] = {}
        for column, names in self.evaluation.items():
            values = [self._accuracy(source, clip, name) for name in names]
            known = [value for value in values if value is not None]
            means[column] = sum(known) / len(known) if len(known) == len(values) else None
        return means

    def _accuracy(self, source: Any, clip: Clip, name: str) -> float | None:
        data = self._load(name)
        options: dict[str, Any] = {"cache_folder": self.cache_folder, "num_workers": self.workers}
        if isinstance(source, ClassTexts):
            return compare(clip, data, [ClassFeatureSource("row", source)], **options).rows[0].accuracy
        if not source.any_classes and source.linear.out_features != data.num_classes:
            return None
        return evaluate_on(source, data, **options).accuracy

    def _load(self, name: str) -> ClassificationData:
        if name not in self._data:
            self._data[name] = load_classification_data(name, self.data_root, test_only=True)
        return self._data[name]

    def _clip(self, cfg: CfgNode) -> Clip:
        backbone = cfg.MODEL.BACKBONE
        name = f"{backbone.NAME} {backbone.WEIGHTS}"
        if name not in self._clips:
            self._clips[name] = load_clip(
                backbone.NAME, weights=backbone.WEIGHTS or None, device=select_device(cfg), precision="amp"
            )
        return self._clips[name]

    def _key(self, row: GridRow, cfg: CfgNode, clip: Clip) -> str:
        """Hash of all that the result depends on."""
        values = [] if row.texts else [(k, v) for k, v in flatten(cfg).items() if k not in _PLACES]
        sets = [self._load(name) for names in self.evaluation.values() for name in names]
        content = [
            values,
            row.texts,
            self.evaluation,
            [(data.name, len(data.test), names_hash(data.class_names)) for data in sets],
            clip.text_fingerprint,
            clip.image_fingerprint,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _fill_cache(self, cfg: CfgNode, clip: Clip) -> None:
        """Encode the training images, so that the cost of a row does not depend on which row came first."""
        if cfg.FEATURE_CACHE.ENABLED and cfg.TRAINER.NAME not in ("VPT", "MaPLe"):
            autocast = TowerAutocast(clip.device, autocast_dtype(precision(cfg), clip.device))
            features = ImageFeatures(cfg, clip, autocast, show_progress=False)
            features.training(load_training_data(cfg).train)


class _Costs:
    """Seconds of the block, and the memory in GB that it took on top of what was there.

    On a GPU wall-clock seconds and allocated memory; on the CPU this process's processor time, which other programs do
    not change, and its resident memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = self.memory = 0.0

    def __enter__(self) -> "_Costs":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # Linux alone can reset the peak
                Path("/proc/self/clear_refs").write_text("5")
        self._before = self._peak()
        self._started = self._clock()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = self._clock() - self._started
        before = 0.0 if self.device.type == "cuda" else self._before
        self.memory = max(self._peak() - before, 0.0)

    def _clock(self) -> float:
        return time.monotonic() if self.device.type == "cuda" else time.process_time()

    def _peak(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            if found:
                return int(found[1]) * 1024 / 1e9
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
