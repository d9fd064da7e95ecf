"""Prompts trained and compared on ShapeWorld: one world, one set of image features, any number of runs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from fvcore.common.config import CfgNode

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.classification.class_features import ClassFeatureSource
from prompt_pretrain.classification.comparison import Comparison, compare
from prompt_pretrain.classification.evaluation import Evaluation, harmonic_mean
from prompt_pretrain.classification.items import ClassificationData, ImageItem
from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.classification.transforms import eval_transform, train_transform
from prompt_pretrain.clip import Clip, load_clip
from prompt_pretrain.config import flatten, load_cfg
from prompt_pretrain.feature_cache import FeatureCache
from prompt_pretrain.pretrain import Progress
from prompt_pretrain.pretraining_setup import PretrainReport, load_training_data, pretrain_prompt
from prompt_pretrain.shapeworld import TINY_CLIP_NAME
from prompt_pretrain.shapeworld.writers import Recipe, write_imagenet21k

HARD_PROMPT = "a photo of a {}."
ENSEMBLE = "imagenet80"
# What two runs may differ in without differing in results.
_PLACES = (
    "OUTPUT_DIR",
    "RESUME",
    "DATASET.ROOT",
    "FEATURE_CACHE.FOLDER",
    "DATALOADER.NUM_WORKERS",
    "MODEL.BACKBONE.NAME",
)


@dataclass(frozen=True)
class PromptRun:
    """One prompt to train.

    Attributes:
        name: of its folder and in tables.
        overrides: ``KEY VALUE`` pairs that differ from the study's config.
        seed: of initial context, order, augmentation, negatives and held-out images.
    """

    name: str
    overrides: tuple[str, ...] = ()
    seed: int = 1

    @property
    def folder(self) -> str:
        """Relative folder name, safe on every file system."""
        safe = "".join(c if c.isalnum() or c in "-." else "_" for c in self.name.lower())
        return f"{safe}/seed{self.seed}"


@dataclass(frozen=True)
class Score:
    """Top-1 in percent: each group with its own classes as candidates, and with base and novel classes together."""

    base: float
    novel: float
    base_among_all: float
    novel_among_all: float
    alignment: float
    uniformity: float

    @property
    def harmonic(self) -> float:
        return harmonic_mean(self.base, self.novel)

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Score":
        base, novel = evaluation.groups["base"], evaluation.groups["novel"]
        return cls(
            base["accuracy"],
            novel["accuracy"],
            base["accuracy_all_classes"],
            novel["accuracy_all_classes"],
            evaluation.metrics["alignment"],
            evaluation.metrics["uniformity"],
        )


class ShapeWorldStudy:
    """A folder with a world, its image features and the runs made on them.

    Every step leaves finished files and takes up what an interrupted one left, so all of it can be called again.

    Args:
        folder: where everything goes.
        recipe: of the world.
        config_file: YAML that all runs start from.
        clip_name: what :func:`~prompt_pretrain.clip.load_clip` takes.
        overrides: ``KEY VALUE`` pairs for all runs.
        workers: processes that draw and read images.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        recipe: Recipe,
        *,
        config_file: str | os.PathLike,
        clip_name: str = TINY_CLIP_NAME,
        overrides: Sequence[str] = (),
        workers: int = 1,
    ) -> None:
        self.folder = Path(folder)
        self.recipe = recipe
        self.config_file = Path(config_file)
        self.clip_name = clip_name
        self.overrides = tuple(overrides)
        self.workers = workers

    @property
    def data_root(self) -> Path:
        return self.folder / "data"

    @property
    def cache_folder(self) -> Path:
        return self.folder / "image_features"

    @cached_property
    def clip(self) -> Clip:
        return load_clip(self.clip_name)

    def cfg(self, run: PromptRun) -> CfgNode:
        """The configuration of a run; a wrong key or value fails here."""
        return load_cfg(self.config_file, [*self._places(run), *self.overrides, *run.overrides])

    def commands(self, runs: Sequence[PromptRun]) -> list[tuple[str, str]]:
        """Titles and command lines of what the methods below do."""
        recipe, world = self.recipe, self.data_root / "shapeworld"
        draw = (
            f"python tools/make_shapeworld.py --output {_quoted(str(world))} --num-classes {recipe.num_classes} "
            f"--novel-classes {recipe.num_novel} --images-per-class {recipe.images_per_class} "
            f"--val-per-class {recipe.val_per_class} --seed {recipe.seed}"
        )
        train = f"python tools/pretrain_prompt.py --config-file {_quoted(str(self.config_file))}"
        lines = [("draw the world", draw)]
        for run in runs:
            pairs = [*self._places(run), *self.overrides, *run.overrides]
            lines.append((f"pre-train {run.name}", " ".join([train, *map(_quoted, pairs)])))
        return lines

    def write_world(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Draw the images that are not there yet."""
        write_imagenet21k(self.data_root / "shapeworld", self.recipe, workers=self.workers, progress=progress)

    def encode_images(self, seeds: Sequence[int], *, show_progress: bool = False) -> None:
        """Fill the feature caches that training with these seeds and the evaluation will read."""
        for seed in seeds:
            cfg = self.cfg(PromptRun("features", seed=seed))
            data = load_training_data(cfg)
            used = cfg.INPUT
            augmented = train_transform(
                used.TRANSFORMS, used.SIZE[0], used.PIXEL_MEAN, used.PIXEL_STD, used.RANDAUGMENT_N, used.INTERPOLATION
            )
            self._encode(data.train, augmented, cfg.FEATURE_CACHE.VIEWS if augmented.random else 1, seed, show_progress)
            plain = eval_transform(used.SIZE[0], used.PIXEL_MEAN, used.PIXEL_STD, used.INTERPOLATION)
            self._encode(data.held_out, plain, 1, seed, show_progress)
        test = self.test_data
        clip = self.clip
        self._encode(test.test, eval_transform(clip.image_size, clip.mean, clip.std), 1, 0, show_progress)

    def train(self, run: PromptRun, progress: Progress | None = None) -> PretrainReport:
        """Train a prompt, or what is left of it. What an earlier run with other settings left there is removed."""
        folder, settings = self.run_folder(run), self.settings(run)
        marker = folder / "study_settings.txt"
        if folder.exists() and not (marker.exists() and marker.read_text() == settings):
            shutil.rmtree(folder)
        with atomic_writer(marker, "w") as file:
            file.write(settings)
        return pretrain_prompt(self.cfg(run), config_name=self.config_file.stem, progress=progress)

    def run_folder(self, run: PromptRun) -> Path:
        return self.folder / "runs" / run.folder

    def settings(self, run: PromptRun) -> str:
        """Hash of all that the result of a run depends on."""
        values = {key: value for key, value in flatten(self.cfg(run)).items() if key not in _PLACES}
        content = [values, asdict(self.recipe), self.clip.text_fingerprint, self.clip.image_fingerprint]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def training_images(self, run: PromptRun) -> int:
        """Number of images that a run trains on."""
        return len(load_training_data(self.cfg(run)).train)

    @cached_property
    def test_data(self) -> ClassificationData:
        """Test images of base and novel classes, in one label space: base classes first."""
        base = load_classification_data("ShapeWorld", self.data_root, test_only=True)
        novel = load_classification_data("ShapeWorldNovel", self.data_root, test_only=True)
        shifted = [ImageItem(item.path, item.label + base.num_classes) for item in novel.test]
        items = (*base.test, *shifted)
        return ClassificationData(
            "ShapeWorld base + novel", base.root, base.class_names + novel.class_names, (), items, items, ()
        )

    @property
    def groups(self) -> dict[str, range]:
        """Class ids of base and novel classes in :attr:`test_data`."""
        base, novel = self.recipe.num_classes, self.recipe.num_novel
        return {"base": range(base), "novel": range(base, base + novel)}

    def compare(self, sources: Sequence[ClassFeatureSource]) -> Comparison:
        """Evaluate sources of class features on base and novel classes."""
        return compare(
            self.clip,
            self.test_data,
            sources,
            groups=self.groups,
            cache_folder=self.cache_folder,
            batch_size=64,
            num_workers=self._loader_workers,
        )

    def test_features(self) -> FeatureCache:
        """Image features of :attr:`test_data`."""
        transform = eval_transform(self.clip.image_size, self.clip.mean, self.clip.std)
        return self._encode(self.test_data.test, transform, 1, 0, False)

    @property
    def _loader_workers(self) -> int:
        return self.workers if self.workers > 1 else 0

    def _places(self, run: PromptRun) -> list[str]:
        pairs = {
            "DATASET.ROOT": str(self.data_root),
            "OUTPUT_DIR": str(self.run_folder(run)),
            "FEATURE_CACHE.FOLDER": str(self.cache_folder),
            "MODEL.BACKBONE.NAME": self.clip_name,
            "DATALOADER.NUM_WORKERS": str(self._loader_workers),
            "SEED": str(run.seed),
        }
        return [text for pair in pairs.items() for text in pair]

    def _encode(
        self, items: Sequence[ImageItem], transform: object, views: int, seed: int, show_progress: bool
    ) -> FeatureCache:
        return FeatureCache.build(
            self.clip,
            items,
            transform,  # type: ignore[arg-type]
            views=views,
            folder=self.cache_folder,
            batch_size=64,
            num_workers=self._loader_workers,
            seed=seed,
            progress=show_progress,
        )


def _quoted(text: str) -> str:
    return f"'{text}'" if any(c in text for c in " ()[]'\"$*") else text
