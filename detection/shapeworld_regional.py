"""Prompts for detection compared on ShapeWorld, as PromptDet compares them: hand-made, regional (RPL), POMP.

Every prompt gives class embeddings of all classes; they classify crops of objects, and each is the frozen classifier of
a detector that is trained on the boxes of base classes. Everything stays in one folder, so an interrupted comparison
goes on where it was.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from detection.data.datasets.shapeworld import FOLDER
from detection.shapeworld_study import LVIS, DetectionRun, DetectionStudy
from detection.shapeworld_worlds import DetectionWorlds, Progress
from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.classification.evaluation import evaluate, feature_batches
from prompt_pretrain.classification.items import ImageItem
from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.classification.transforms import eval_transform
from prompt_pretrain.clip import Clip, load_clip
from prompt_pretrain.config import load_cfg
from prompt_pretrain.errors import InputError
from prompt_pretrain.feature_cache import FeatureCache
from prompt_pretrain.prompt import load_prompt
from prompt_pretrain.regional.classes import RegionalClass
from prompt_pretrain.regional.crops import CropRules, make_crops
from prompt_pretrain.regional.embeddings import described_embeddings, load_classes
from prompt_pretrain.regional.retrieval import build_index, open_index
from prompt_pretrain.regional.rounds import RoundRules, Rounds
from prompt_pretrain.regional.selection import SelectionRules
from prompt_pretrain.report import Commands, Report, Table, Text
from prompt_pretrain.shapeworld import TINY_CLIP_NAME
from prompt_pretrain.shapeworld.writers import Recipe
from prompt_pretrain.shapeworld_results import machine, mean_and_deviation
from prompt_pretrain.shapeworld_study import HARD_PROMPT, PromptRun, ShapeWorldStudy

__all__ = ["DETECTORS", "MARKERS", "PROMPTS", "RegionalComparison", "RegionalSettings", "render"]
MARKERS = ("<!-- ShapeWorld regional: begin -->", "<!-- ShapeWorld regional: end -->")
_CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "prompt_pretrain"
PROMPTS = {
    "hard": f"hard prompt, “{HARD_PROMPT}”",
    "described": "hard prompt with description",
    "rpl": "RPL, crops of base classes",
    "rpl_web": "RPL, second round with web images",
    "pomp": "POMP",
}
DETECTORS = ("hard", "rpl", "pomp")  # PromptDet's comparison; a detector takes minutes
_TRAINED = ("rpl", "rpl_web", "pomp")
_GROUPS = ("base", "novel")


@dataclass(frozen=True)
class RegionalSettings:
    """What is compared, and at which size.

    Attributes:
        worlds: scenes to detect things in; the image-labelled pictures are the web, their labels are not looked at.
        padding: context of crops. The published 1.0 leaves a thing a third of the picture's side, too little for the
            64 pixels of the tiny CLIP.
        pomp_classes, pomp_images: base classes that POMP is trained on, and images of each (long-tailed).
        candidates, top_k: addresses retrieved and images taken of each base class.
        pomp, rpl: ``KEY VALUE`` pairs of the trainings of prompts.
    """

    worlds: DetectionWorlds = field(default_factory=DetectionWorlds)
    padding: float = 0.25
    pomp_classes: int = 800
    pomp_images: int = 8
    candidates: int = 30
    top_k: int = 10
    pomp: tuple[str, ...] = ()
    rpl: tuple[str, ...] = ()


class RegionalComparison:
    """A folder with data, prompts, their class embeddings and the detectors trained with them.

    Args:
        folder: where everything goes.
        overrides: ``KEY VALUE`` pairs for all detectors.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: RegionalSettings | None = None,
        overrides: Sequence[str] = (),
        *,
        workers: int = 1,
    ) -> None:
        self.folder, self.settings, self.workers = Path(folder).resolve(), settings or RegionalSettings(), workers
        self.detection = DetectionStudy(self.folder, self.settings.worlds, overrides)
        self.world = self.detection.data / FOLDER
        self.annotations = self.world / "lvis" / "lvis" / "lvis_v1_train.json"
        self.pomp = ShapeWorldStudy(
            self.folder / "pomp",
            Recipe(
                num_classes=self.settings.pomp_classes,
                num_novel=1,
                images_per_class=self.settings.pomp_images,
                val_per_class=1,
            ),
            config_file=_CONFIGS / "shapeworld_tiny.yaml",
            overrides=self.settings.pomp,
            workers=workers,
        )

    @cached_property
    def clip(self) -> Clip:
        return load_clip(TINY_CLIP_NAME)

    @cached_property
    def classes(self) -> tuple[RegionalClass, ...]:
        return load_classes(self.annotations)

    def prepare(self, progress: Progress | None = None) -> None:
        """Draw what is not there, cut crops, index the web."""
        self.detection.draw(workers=self.workers, progress=progress)
        self.pomp.write_world(lambda done, total: progress("POMP's images", done, total) if progress else None)
        make_crops(
            self.annotations,
            self.annotations.with_name("lvis_v1_val.json"),
            self.world / "lvis" / "coco",
            self.folder / "crops",
            rules=CropRules(padding=self.settings.padding),
            workers=self.workers,
        )
        if not (self.folder / "index" / "index.json").is_file():
            build_index(self.clip, self._web, self.folder / "index", cache_folder=self._cache)

    def embeddings(self, prompt: str, seed: int) -> dict[str, Any]:
        """``file``, ``seconds`` and ``images`` (trained on) of the class embeddings of a prompt; trained if need be."""
        seed = seed if prompt in _TRAINED else 0
        described = self._described(prompt, seed)
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
        path = self.folder / "class_embeddings" / f"{prompt}_seed{seed}_{digest}.json"
        with suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if Path(found["file"]).is_file():
                return found
        began = time.monotonic()
        made, images = self._make(prompt, seed)
        file = path.with_suffix(".safetensors")
        made.save(file)
        found = {**described, "file": str(file), "images": images, "seconds": time.monotonic() - began}
        write_json(path, found)
        return found

    def crop_accuracy(self, embeddings: ClassEmbeddings) -> dict[str, float]:
        """Top-1 in percent on validation crops: of base among base, novel among novel, and both among all classes."""
        cache, labels = self._crop_features
        rows = {item.folder: row for row, item in enumerate(self.classes)}
        groups = {kind: [rows[c.folder] for c in self.classes if c.base == (kind == "base")] for kind in _GROUPS}
        found = evaluate(embeddings.embeddings, feature_batches(cache.features, labels), groups=groups)
        return {
            **{kind: found.groups[kind]["accuracy"] for kind in _GROUPS},
            **{f"{kind}_among_all": found.groups[kind]["accuracy_all_classes"] for kind in _GROUPS},
        }

    def detector(self, prompt: str, seed: int, announce: Callable[[str], None] = print) -> dict[str, Any]:
        """Metrics and seconds of the detector with a prompt's class embeddings; trained if need be."""
        file = self.embeddings(prompt, seed)["file"]
        run = DetectionRun(Path(file).stem, PROMPTS[prompt], "shapeworld_boxsup", ("MODEL.CLASS_EMBEDDINGS.PATH", file))
        return self.detection.result(run, seed, announce)

    def run(
        self,
        seeds: Sequence[int],
        prompts: Sequence[str] = tuple(PROMPTS),
        *,
        jobs: int = 1,
        detectors: Sequence[str] | None = None,
        announce: Callable[[str], None] = print,
    ) -> dict[str, list[dict[str, Any]]]:
        """Everything; prompt -> one entry per seed: ``crops``, ``seconds``, ``images`` and, if asked for, ``detector``.

        Args:
            jobs: detectors trained side by side.
            detectors: those of ``prompts`` that detectors are trained with; by default those of `DETECTORS`.
        """
        used = [prompt for prompt in prompts if prompt in (DETECTORS if detectors is None else detectors)]
        unknown = [prompt for prompt in (*prompts, *(detectors or ())) if prompt not in PROMPTS]
        if unknown:
            raise InputError(f"unknown prompt {unknown[0]!r}; expected some of {', '.join(PROMPTS)}")
        left_out = [prompt for prompt in detectors or () if prompt not in prompts]
        if left_out:
            raise InputError(f"a detector for {left_out[0]!r}, but prompts are {', '.join(prompts)}; add it to them")
        if not seeds:
            raise InputError("no seed given; give at least one")
        found: dict[str, list[dict[str, Any]]] = {prompt: [] for prompt in prompts}
        for seed in seeds:
            for prompt in prompts:
                made = self.embeddings(prompt, seed)
                crops = self.crop_accuracy(ClassEmbeddings.load(made["file"]))
                found[prompt].append({"crops": crops, "seconds": made["seconds"], "images": made["images"]})
                shown = ", ".join(f"{kind} {crops[kind]:.2f}" for kind in _GROUPS)
                announce(f"seed {seed}, {prompt}: crops {shown}")
        cells = [(prompt, number) for number in range(len(seeds)) for prompt in used]
        with ThreadPoolExecutor(jobs) as pool:
            results = pool.map(lambda cell: self.detector(cell[0], seeds[cell[1]], announce), cells)
            for (prompt, number), result in zip(cells, results, strict=True):
                found[prompt][number]["detector"] = result
        return found

    @property
    def _web(self) -> Path:
        return self.world / "image_labels" / "images"

    @property
    def _cache(self) -> Path:
        return self.folder / "image_features"

    def _described(self, prompt: str, seed: int) -> dict[str, Any]:
        """What the class embeddings depend on."""
        used = asdict(self.settings)
        if prompt in ("hard", "described"):
            used = {"worlds": used["worlds"]}
        config = _CONFIGS / ("shapeworld_tiny.yaml" if prompt == "pomp" else "regional/shapeworld.yaml")
        text = config.read_text(encoding="utf-8") if prompt in _TRAINED else ""
        return {"prompt": prompt, "seed": seed, "clip": self.clip.text_fingerprint, "settings": used, "config": text}

    def _make(self, prompt: str, seed: int) -> tuple[ClassEmbeddings, int]:
        """Class embeddings, and the number of images that the prompt was trained on."""
        names = [item.name for item in self.classes]
        if prompt == "hard":
            return ClassEmbeddings.make(self.clip, names, HARD_PROMPT), 0
        if prompt == "described":
            return described_embeddings(self.clip, self.classes, HARD_PROMPT), 0
        if prompt == "pomp":
            run = PromptRun("POMP", seed=seed)
            trained = self.pomp.train(run).result
            return ClassEmbeddings.make(self.clip, names, load_prompt(trained.best_prompt)), self.pomp.training_images(
                run
            )
        done = self._rounds(seed).run(announce=lambda text: None)
        entry = done[0 if prompt == "rpl" else 1]
        return ClassEmbeddings.load(entry["embeddings"]), entry["train_images"]

    def _rounds(self, seed: int) -> Rounds:
        places = ["DATASET.ROOT", str(self.folder / "crops"), "FEATURE_CACHE.FOLDER", str(self._cache)]
        cfg = load_cfg(_CONFIGS / "regional" / "shapeworld.yaml", [*places, "SEED", str(seed), *self.settings.rpl])
        return Rounds(
            self.folder / "rounds" / f"seed{seed}",
            cfg,
            self.classes,
            open_index(self.folder / "index"),
            RoundRules(2, self.settings.candidates, SelectionRules(self.settings.top_k)),
            web_folder=self._web,
        )

    @cached_property
    def _crop_features(self) -> tuple[FeatureCache, Any]:
        rows = {item.folder: row for row, item in enumerate(self.classes)}
        items: list[ImageItem] = []
        for name in ("RegionalCrops", "RegionalCropsNovel"):
            data = load_classification_data(name, self.folder / "crops", test_only=True)
            items += [ImageItem(item.path, rows[data.folders[item.label]]) for item in data.test]
        transform = eval_transform(self.clip.image_size, self.clip.mean, self.clip.std)
        cache = FeatureCache.build(self.clip, items, transform, folder=self._cache, on_corrupt="raise")
        return cache, cache.labels


def render(
    study: RegionalComparison, seeds: Sequence[int], results: dict[str, list[dict[str, Any]]], command: str
) -> str:
    """The Markdown section about the comparison."""
    settings, report = study.settings, Report("ShapeWorld, prompts for detection")
    lvis = settings.worlds.lvis
    detected = [entry["detector"] for of_seeds in results.values() for entry in of_seeds if "detector" in entry]
    seconds = sum(entry["seconds"] for of_seeds in results.values() for entry in of_seeds)
    seconds += sum(entry["seconds"] for entry in detected)
    shown_seeds = ", ".join(map(str, seeds))
    report.add(
        Text(
            f"Scenes in LVIS' format: {lvis.num_classes} base classes with boxes in {lvis.train_images:,} training "
            f"images, {lvis.num_novel} novel classes without any, {lvis.val_images} test images. Regional prompts "
            f"(RPL) are trained on crops of the boxes (padding {settings.padding:g}), in the second round with up to "
            f"{settings.top_k} pictures per base class that the first round's embeddings retrieve among unlabelled "
            f"pictures; they see a description of each class. POMP is trained on images of the "
            f"{settings.pomp_classes:,} first base classes of ShapeWorld. CLIP: the tiny one (`{TINY_CLIP_NAME}`). "
            "Detector: `configs/detection/shapeworld_boxsup.yaml`, boxes of base classes, class embeddings frozen."
        ),
        Text(
            "Crops: top-1 accuracy in percent on crops of the test images, among the classes of the same kind and "
            f"among all. AP: of boxes, in percent. Mean ± standard deviation over the seeds {shown_seeds}; the "
            "data and the hard prompts stay the same."
        ),
        Commands([command]),
        Text(f"{seconds / 60:.0f} process minutes of training and evaluation on {machine()}, without drawing."),
    )
    columns = ("base", "novel", "base_among_all", "novel_among_all")
    rows = []
    for prompt, of_seeds in results.items():
        row = [PROMPTS[prompt], f"{of_seeds[0]['images']:,}" if of_seeds[0]["images"] else "–"]
        for column in columns:
            values = [entry["crops"][column] for entry in of_seeds]
            row.append(mean_and_deviation(values if prompt in _TRAINED else values[:1]))
        rows.append(row)
    headings = ("crops, base", "crops, novel", "base among all", "novel among all")
    report.section("Crops")
    report.add(Table(["", "images", *headings], rows, text_columns=(0,)))
    if detected:
        report.section("Detection")
        measures = ("novel", "common", "frequent", "AP", "AP50")
        rows = [
            [
                PROMPTS[prompt],
                *(
                    mean_and_deviation([entry["detector"]["results"][LVIS][measure] for entry in of_seeds], 1)
                    for measure in measures
                ),
            ]
            for prompt, of_seeds in results.items()
            if "detector" in of_seeds[0]
        ]
        report.add(Table(["", "AP novel", "AP common", "AP frequent", "AP", "AP50"], rows, text_columns=(0,)))
    return report.markdown()
