"""The steps of the quickstart: world, image features, prompts, class embeddings, classification."""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from prompt_pretrain.analysis import NearestWord, confused_pairs, nearest_words
from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.classification.class_features import ClassFeatureSource
from prompt_pretrain.classification.comparison import Comparison
from prompt_pretrain.classification.decoding import open_image
from prompt_pretrain.custom_vocabulary import embed_classes
from prompt_pretrain.metrics_log import read_metrics
from prompt_pretrain.plots import SamplePrediction
from prompt_pretrain.prompt import load_prompt
from prompt_pretrain.quickstart.timings import Pace, Timings
from prompt_pretrain.shapeworld.tiny_clip import known_tokens
from prompt_pretrain.shapeworld.writers import Recipe
from prompt_pretrain.shapeworld_study import ENSEMBLE, HARD_PROMPT, PromptRun, ShapeWorldStudy
from prompt_pretrain.vocabulary import clean_class_name, load_vocabulary

HARD_NAME = "hard prompt"
ENSEMBLE_NAME = "80 templates"
SHUFFLED_NAME = "shuffled embeddings"
SEED = 1
_NUM_SAMPLES = 8

# Shows that a step has done `done` of `total`; the text stands beside the bar.
Bar = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Plan:
    """What one quickstart does.

    Attributes:
        recipe: of the world.
        sampled: K of each training run; None contrasts all classes.
        expected: seconds of drawing, encoding, each training run, exporting, classifying on two idle cores; they set
            how the remaining time is shared among the steps.
        overrides: ``KEY VALUE`` pairs for all runs.
    """

    recipe: Recipe
    sampled: tuple[int | None, ...]
    expected: tuple[float, ...]
    overrides: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[PromptRun, ...]:
        return tuple(
            PromptRun(
                f"POMP, K = {k or 'all'}", ("TRAINER.POMP.UPDATE_CLASS_NUM", "all" if k is None else str(k)), SEED
            )
            for k in self.sampled
        )


FULL_PLAN = Plan(
    Recipe(num_classes=800, num_novel=200, images_per_class=8, val_per_class=3),
    (32, 256, None),
    (8.0, 21.0, 7.0, 12.0, 17.0, 0.5, 8.0),
)
FAST_PLAN = Plan(
    Recipe(num_classes=200, num_novel=50, images_per_class=6, val_per_class=3),
    (32, None),
    (3.6, 4.3, 2.5, 2.5, 0.2, 2.7),
    ("DATALOADER.TRAIN_X.BATCH_SIZE", "64"),
)


@dataclass
class Outcome:
    """All that the report tells.

    ``epochs`` and ``lines``: per run the rows of its log, by epoch and in between. ``samples``: some test images.
    """

    plan: Plan
    clip_id: str
    comparison: Comparison
    prompts: dict[str, Path]
    epochs: dict[str, list[dict[str, Any]]]
    lines: dict[str, list[dict[str, Any]]]
    best: str
    words: list[list[NearestWord]]
    confusions: list[dict[str, Any]]
    samples: list[SamplePrediction]
    image_counts: dict[str, int]
    embedding_files: list[Path]
    seconds: dict[str, float]
    commands: list[tuple[str, str]]


class Quickstart:
    """Runs a plan in a folder; called again, it goes on where it stopped.

    Args:
        folder: where everything goes.
        study: world and runs in that folder.
        announce: called with the number of a step, the number of steps, a title, and the seconds that it and all later
            steps will take, as far as one can tell.
        bar: makes a progress bar for a step: a context that gives a :data:`Bar`.
        show_progress: show bars while images are encoded.
        more: seconds that one expects of each step which the caller adds with :meth:`step`, on two idle cores.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        study: ShapeWorldStudy,
        plan: Plan,
        *,
        announce: Callable[[int, int, str, float], None],
        bar: Callable[[str], Any],
        show_progress: bool = False,
        more: Sequence[float] = (),
    ) -> None:
        self.folder, self.study, self.plan = Path(folder), study, plan
        self.announce, self.bar, self.show_progress = announce, bar, show_progress
        self.timings = Timings(self.folder / "timings.json")
        self._pace = Pace([*plan.expected, *more])

    def run(self) -> Outcome:
        """Take all steps.

        Raises:
            InputError: the folder holds another world or runs with other settings.
            TrainingInterrupted: SIGINT or SIGTERM came while training.
        """
        study, plan = self.study, self.plan
        for run in plan.runs:
            study.cfg(run)  # a wrong setting fails before anything is drawn
        _ = study.clip  # so does an unknown CLIP
        recipe = plan.recipe
        classes = f"{recipe.num_classes} base and {recipe.num_novel} novel classes"
        with self.step("Draw ShapeWorld", classes), self.bar("images") as bar:
            study.write_world(lambda done, total: bar(done, total, ""))
        with self.step("Encode images", "once, for all prompts"):
            study.encode_images([SEED], show_progress=self.show_progress)
        prompts = {}
        for run in plan.runs:
            with self.step(f"Pre-train {run.name}"), self.bar("steps") as bar:
                prompts[run.name] = study.train(run, bar).result.best_prompt
        with self.step("Export class embeddings", f"{recipe.num_classes + recipe.num_novel} classes"):
            best = self._best()
            embedding_files = self._export(prompts[best])
        with self.step("Classify", "base and novel classes, every prompt"):
            comparison = study.compare(self._sources(prompts, best))
        return Outcome(
            plan,
            study.clip.clip_id,
            comparison,
            prompts,
            {run.name: self._log(run, "epoch") for run in plan.runs},
            {run.name: self._log(run, "train") for run in plan.runs},
            best,
            self._nearest_words(prompts[best]),
            self._confusions(comparison, best),
            self._samples(prompts[best]),
            self._image_counts(),
            embedding_files,
            self.timings.seconds,
            self._commands(prompts, best),
        )

    @contextmanager
    def step(self, title: str, detail: str = "") -> Iterator[None]:
        """Announce the next step and measure the block as this step."""
        pace = self._pace
        text = f"{title} ({detail})" if detail else title
        self.announce(pace.done + 1, len(pace.expected), text, pace.remaining())
        with pace.step(), self.timings.step(title):
            yield

    def _log(self, run: PromptRun, kind: str) -> list[dict[str, Any]]:
        return read_metrics(self.study.run_folder(run) / "metrics.jsonl", kind)

    def _export(self, prompt: Path) -> list[Path]:
        names = self.study.test_data.class_names
        with atomic_writer(self._names_file, "w") as file:
            file.write("\n".join(names) + "\n")
        embeddings = ClassEmbeddings.make(self.study.clip, load_vocabulary(self._names_file), load_prompt(prompt))
        files = [self.folder / "class_embeddings" / f"shapeworld_pomp{suffix}" for suffix in (".npy", ".safetensors")]
        for path in files:
            embeddings.save(path)
        return files

    @property
    def _names_file(self) -> Path:
        return self.folder / "class_embeddings" / "class_names.txt"

    def _commands(self, prompts: dict[str, Path], best: str) -> list[tuple[str, str]]:
        study = self.study
        prompt = shlex.quote(str(prompts[best]))
        clip = f"--clip {shlex.quote(study.clip_name)}"
        export = (
            f"python tools/export_class_embeddings.py --prompt {prompt} {clip} --vocabulary {self._names_file} "
            f"--output {self.folder / 'class_embeddings' / 'shapeworld_pomp.npy'}"
        )
        classify = (
            f"python tools/evaluate_classification.py --datasets ShapeWorld --data-root {study.data_root} {clip} "
            f"--prompt {prompt} --template '{HARD_PROMPT}' --template {ENSEMBLE}"
        )
        analyse = f"python tools/analyse_prompt.py --prompt {prompt} {clip} --vocabulary {self._names_file}"
        return [
            *study.commands(self.plan.runs),
            ("export class embeddings", export),
            ("classify the base classes", classify),
            ("look at the prompt", f"{analyse} --output {self.folder / 'analysis'}"),
        ]

    def _sources(self, prompts: dict[str, Path], best: str) -> list[ClassFeatureSource]:
        clip, names = self.study.clip, self.study.test_data.class_names
        learned = ClassEmbeddings.make(clip, names, load_prompt(prompts[best]))
        # By far the most texts: kept, so that a later start does not encode them again.
        ensemble = embed_classes(names, ENSEMBLE, clip, cache_dir=str(self.folder / "class_embeddings" / "cache"))
        return [
            ClassFeatureSource(SHUFFLED_NAME, learned.shuffled(SEED)),
            ClassFeatureSource.parse("template", f"{HARD_NAME}={HARD_PROMPT}"),
            ClassFeatureSource(ENSEMBLE_NAME, ensemble),
            *(ClassFeatureSource(name, ClassTexts(load_prompt(path))) for name, path in prompts.items()),
        ]

    def _best(self) -> str:
        """The learned prompt to show: the best one on images held out from training, not on the test images."""
        accuracies = {
            run.name: max(row.get("accuracy") or 0.0 for row in self._log(run, "epoch")) for run in self.plan.runs
        }
        return max(accuracies, key=accuracies.__getitem__)

    def _confusions(self, comparison: Comparison, name: str) -> list[dict[str, Any]]:
        row = next(row for row in comparison.rows if row.name == name)
        return confused_pairs(row.ranked, row.labels, [clean_class_name(n) for n in comparison.class_names], 8)

    def _samples(self, prompt: Path) -> list[SamplePrediction]:
        """Test images at fixed places of the list, half of them of novel classes, whatever is guessed for them."""
        study = self.study
        data, cache = study.test_data, study.test_features()
        names = [clean_class_name(name) for name in data.class_names]
        groups = study.groups
        first_novel = next(i for i, item in enumerate(data.test) if item.label in groups["novel"])
        half = _NUM_SAMPLES // 2
        places = [*_spread(0, first_novel, half), *_spread(first_novel, len(data.test), _NUM_SAMPLES - half)]
        images = F.normalize(torch.from_numpy(cache.features[places, 0].astype("float32")), dim=1)
        guesses: list[dict[str, list[tuple[str, float]]]] = [{} for _ in places]
        for source in (
            ClassFeatureSource.parse("template", f"{HARD_NAME}={HARD_PROMPT}"),
            ClassFeatureSource("POMP", ClassTexts(load_prompt(prompt))),
        ):
            weights = F.normalize(source.encode(study.clip, data.class_names), dim=1)
            chances, classes = (study.clip.logit_scale * images @ weights.T).softmax(dim=1).topk(1, dim=1)
            for guess, chance, index in zip(guesses, chances.tolist(), classes.tolist(), strict=True):
                guess[source.name] = [(names[i], p) for i, p in zip(index, chance, strict=True)]
        return [
            SamplePrediction(open_image(data.test[place].path), names[data.test[place].label], guess)
            for place, guess in zip(places, guesses, strict=True)
        ]

    def _nearest_words(self, prompt: Path) -> list[list[NearestWord]]:
        clip = self.study.clip
        texts = {token: clip.tokenizer.decode([token]).strip() for token in known_tokens(clip.tokenizer)}
        words = [token for token, text in texts.items() if len(text) > 1 and text.isalpha()]  # not single letters
        return nearest_words(load_prompt(prompt).ctx, clip, token_ids=words)

    def _image_counts(self) -> dict[str, int]:
        labels = self.study.test_features().labels
        base = int((labels < self.plan.recipe.num_classes).sum())
        training = self.study.training_images(self.plan.runs[0])
        return {"training": training, "base test": base, "novel test": len(labels) - base}


def _spread(start: int, stop: int, count: int) -> Sequence[int]:
    return [start + (2 * i + 1) * (stop - start) // (2 * count) for i in range(count)]
