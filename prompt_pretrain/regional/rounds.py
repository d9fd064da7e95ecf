"""Rounds of regional prompt learning: train, embed, retrieve web images of the base classes, train again with them.

Everything of round r lies in ``<output>/round<r>``::

    training_set.json    the crops, from round 2 on with the web images of the round before
    run/                 the training; published checkpoint in run/prompt_learner
    embeddings.safetensors
    lists/, web/         addresses and images of the base classes, for the next round

``rounds.json`` holds the accuracies of the finished rounds. Each part takes up what an interrupted call left.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.baselines.setup import train
from prompt_pretrain.baselines.transfer import evaluate_on
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.clip import Clip
from prompt_pretrain.config import flatten
from prompt_pretrain.errors import InputError
from prompt_pretrain.pretrain import Progress
from prompt_pretrain.pretraining_setup import configured_clip, select_device
from prompt_pretrain.regional.classes import RegionalClass
from prompt_pretrain.regional.crop_data import NOVEL_NAMES, TrainingSet, read_regional_crops
from prompt_pretrain.regional.download import download
from prompt_pretrain.regional.embeddings import regional_embeddings, save_embeddings
from prompt_pretrain.regional.fetching import FetchLimits
from prompt_pretrain.regional.learner import RegionalPrompt, load_regional_prompt
from prompt_pretrain.regional.retrieval import ImageIndex, retrieve
from prompt_pretrain.regional.selection import SelectionRules, select

logger = logging.getLogger(__name__)

# Settings that change no result.
_PLACES = ("OUTPUT_DIR", "RESUME", "DATASET.ROOT", "FEATURE_CACHE.FOLDER", "DATALOADER.NUM_WORKERS", "VERSION")


@dataclass(frozen=True)
class RoundRules:
    """What the rounds do.

    Attributes:
        rounds: trainings in all; 2 published.
        candidates: addresses asked for of each base class (300 published).
        selection: of the downloaded images.
        limits: of downloads.
        patience: stop after this many rounds without a better accuracy on validation crops of base classes; 0 never.
    """

    rounds: int = 2
    candidates: int = 300
    selection: SelectionRules = field(default_factory=SelectionRules)
    limits: FetchLimits = field(default_factory=FetchLimits)
    patience: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError(f"the number of rounds is {self.rounds}; expected at least 1")


class Rounds:
    """A folder with rounds.

    Args:
        folder: where everything goes.
        cfg: of the training; DATASET.ROOT is the folder of crops.
        classes: all classes; embeddings are made of them, web images of those that are trained on.
        index: of web images; None if there is one round only.
        web_folder, backend, workers: see :func:`~prompt_pretrain.regional.download.download`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        cfg: CfgNode,
        classes: Sequence[RegionalClass],
        index: ImageIndex | None,
        rules: RoundRules | None = None,
        *,
        web_folder: str | os.PathLike | None = None,
        backend: str = "auto",
        workers: int = 16,
    ) -> None:
        self.folder, self.cfg, self.classes, self.index = Path(folder), cfg, tuple(classes), index
        self.rules = rules or RoundRules()
        self.web_folder, self.backend, self.workers = web_folder, backend, workers
        if cfg.TRAINER.NAME != "RPL" or cfg.DATASET.NAME != "RegionalCrops":
            raise InputError(
                f"rounds train TRAINER.NAME RPL on DATASET.NAME RegionalCrops, not {cfg.TRAINER.NAME} on "
                f"{cfg.DATASET.NAME}; give one of configs/prompt_pretrain/regional"
            )
        if index is None and self.rules.rounds > 1:
            raise InputError("more than one round needs an index of web images; give one, or ask for one round")
        self._clip: Clip | None = None

    def run(self, *, announce: Callable[[str], None] = print, progress: Progress | None = None) -> list[dict[str, Any]]:
        """All rounds that are not done yet; returns one entry per round, the first at best.

        Entries hold ``round``, ``base`` and ``novel`` (accuracy on validation crops in percent, ``novel`` None without
        novel classes), ``train_images``, ``prompt`` and ``embeddings`` (paths).

        Raises:
            InputError: inputs that cannot be used, or rounds of other settings in the folder.
            TrainingInterrupted: SIGINT or SIGTERM came; the same call goes on.
        """
        done = self._load()
        if done and not self._should_go_on(done):
            return done
        for number in range(len(done) + 1, self.rules.rounds + 1):
            done.append(self._round(number, progress))
            write_json(self.folder / "rounds.json", {"settings": self._settings(), "rounds": done})
            entry = done[-1]
            novel = "" if entry["novel"] is None else f", novel {entry['novel']:.2f}"
            announce(f"round {number}: {entry['train_images']} images, base {entry['base']:.2f}{novel}")
            if not self._should_go_on(done):
                break
        return done

    def best(self, done: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The round of the best accuracy on validation crops of base classes."""
        return max(done, key=lambda entry: entry["base"])

    def _should_go_on(self, done: Sequence[dict[str, Any]]) -> bool:
        behind = done[-1]["round"] - self.best(done)["round"]
        return not self.rules.patience or behind < self.rules.patience

    def _round(self, number: int, progress: Progress | None) -> dict[str, Any]:
        folder = self.folder / f"round{number}"
        web: dict[str, list[str]] = {}
        if number > 1:
            web = self._web_images(number - 1)
        TrainingSet(Path(self.cfg.DATASET.ROOT), web).save(folder)
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATASET.ROOT, cfg.OUTPUT_DIR = str(folder), str(folder / "run")
        cfg.freeze()
        prompt = train(cfg, config_name="regional", progress=progress).result.best_prompt
        learner = load_regional_prompt(prompt, self.clip)
        save_embeddings(regional_embeddings(learner, self.classes, "crops"), folder / "embeddings.safetensors")
        return {
            "round": number,
            "base": self._accuracy(learner, "RegionalCrops", folder),
            "novel": self._accuracy(learner, "RegionalCropsNovel", folder)
            if (Path(self.cfg.DATASET.ROOT) / NOVEL_NAMES).is_file()
            else None,
            "train_images": len(read_regional_crops(folder).train),
            "prompt": str(prompt),
            "embeddings": str(folder / "embeddings.safetensors"),
        }

    def _web_images(self, number: int) -> dict[str, list[str]]:
        """Retrieve with the embeddings of round ``number``, download and select."""
        assert self.index is not None
        folder = self.folder / f"round{number}"
        embeddings = ClassEmbeddings.load(folder / "embeddings.safetensors")
        trained = set(read_regional_crops(self.cfg.DATASET.ROOT, test_only=True).folders)
        base = [item for item in self.classes if item.folder in trained]
        retrieve(self.index, embeddings, base, folder / "lists", k=self.rules.candidates)
        rules = self.rules.selection
        download(
            folder / "lists",
            folder / "web",
            quota=0 if rules.needs_features else rules.top_k,
            limits=self.rules.limits,
            web_folder=self.web_folder,
            backend=self.backend,
            workers=self.workers,
            earlier=[self.folder / f"round{other}" / "web" for other in range(1, number)],
        )
        avoid = read_regional_crops(self.cfg.DATASET.ROOT, test_only=True).test
        return select(
            folder / "web",
            base,
            rules,
            clip=self.clip,
            embeddings=embeddings,
            avoid=avoid,
            cache_folder=self.cfg.FEATURE_CACHE.FOLDER or None,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
        )

    @property
    def clip(self) -> Clip:
        if self._clip is None:
            self._clip = configured_clip(self.cfg, select_device(self.cfg))
        return self._clip

    def _accuracy(self, learner: RegionalPrompt, name: str, folder: Path) -> float:
        data = load_classification_data(name, folder, test_only=True)
        found = evaluate_on(
            learner,
            data,
            cache_folder=self.cfg.FEATURE_CACHE.FOLDER or None,
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
        )
        return found.accuracy

    def _settings(self) -> str:
        values = {key: value for key, value in flatten(self.cfg).items() if key not in _PLACES}
        rules = asdict(self.rules)
        for free in ("rounds", "patience"):
            del rules[free]
        content = [values, rules, [item.line for item in self.classes]]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _load(self) -> list[dict[str, Any]]:
        content: Any = None
        with suppress(FileNotFoundError):
            try:
                content = json.loads((self.folder / "rounds.json").read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{self.folder}/rounds.json is damaged ({error}); delete it") from error
        if content is None:
            return []
        if content["settings"] != self._settings():
            raise InputError(
                f"{self.folder} holds rounds of other settings or classes; choose another --output or delete it"
            )
        done = content["rounds"]
        for entry in done:
            missing = [entry[key] for key in ("prompt", "embeddings") if not Path(entry[key]).is_file()]
            if missing:
                raise InputError(f"{missing[0]} of round {entry['round']} is gone; delete {self.folder}/rounds.json")
        return done[: self.rules.rounds]


def novel_images(
    index: ImageIndex,
    embeddings: ClassEmbeddings,
    classes: Sequence[RegionalClass],
    output: str | os.PathLike,
    *,
    candidates: int = 500,
    selection: SelectionRules | None = None,
    limits: FetchLimits | None = None,
    **options: Any,
) -> dict[str, list[str]]:
    """Retrieve, download and select web images of the novel classes, for the detector's image-level training set.

    Args:
        candidates: addresses asked for of each class (500 published); 300 images of them are kept by default.
        options: of :func:`~prompt_pretrain.regional.download.download`.
    """
    rules = selection or SelectionRules(top_k=300)
    output = Path(output)
    novel = [item for item in classes if not item.base]
    retrieve(index, embeddings, novel, output / "lists", k=candidates)
    download(output / "lists", output / "web", quota=rules.top_k, limits=limits, **options)
    return select(output / "web", novel, rules)
