"""The ShapeWorld detection study behind docs/RESULTS.md: what class embeddings and image labels give novel classes.

Every run is one ``tools/train_net.py`` process. Results stay in its folder, so an interrupted study goes on where it
was, and seeds can run side by side.
"""

import hashlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from detection.data.datasets.shapeworld import FOLDER
from detection.shapeworld_worlds import CAT_INFO, DetectionWorlds, Progress, classes_by_split, draw_worlds
from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.clip import load_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.report import Commands, Report, Table, Text
from prompt_pretrain.shapeworld import TINY_CLIP_NAME

__all__ = ["MARKERS", "RUNS", "DetectionRun", "DetectionStudy", "render"]
_REPOSITORY = Path(__file__).resolve().parents[1]
_CONFIGS = _REPOSITORY / "configs" / "detection"
_TRAIN_NET = _REPOSITORY / "tools" / "train_net.py"
LVIS, COCO, OBJECTS365 = "shapeworld_lvis_val", "shapeworld_coco_val", "shapeworld_objects365_val"
_FOREIGN = {COCO: "COCO", OBJECTS365: "Objects365"}
_ANNOTATIONS = {
    LVIS: "lvis/lvis/lvis_v1_val.json",
    COCO: "coco/coco/annotations/instances_val2017.json",
    OBJECTS365: "objects365/annotations/zhiyuan_objv2_val_fixname.json",
}
MARKERS = ("<!-- ShapeWorld detection: begin -->", "<!-- ShapeWorld detection: end -->")


@dataclass(frozen=True)
class DetectionRun:
    """One training or evaluation.

    Attributes:
        name: of its folder.
        title: in tables.
        config: name in ``configs/detection``.
        overrides: ``KEY VALUE`` pairs.
        start: run whose weights it starts from; "" for random ones.
        shuffled: whether class embeddings belong to other classes than their names say.
        eval_only: no training.
    """

    name: str
    title: str
    config: str
    overrides: tuple[str, ...] = ()
    start: str = ""
    shuffled: bool = False
    eval_only: bool = False


_BOXES_ALONE = (
    *("WITH_IMAGE_LABELS", "False", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    *("DATASETS.TRAIN", "('shapeworld_lvis_train_norare',)"),
)
# Half the iterations of shapeworld_detic.yaml, in which one batch in two has boxes.
_AS_MANY_BOXES = ("SOLVER.MAX_ITER", "100")
RUNS = (
    DetectionRun("boxes", "boxes of base classes", "shapeworld_boxsup"),
    DetectionRun("boxes_shuffled", "the same, trained with shuffled embeddings", "shapeworld_boxsup", shuffled=True),
    DetectionRun(
        "as_many_boxes",
        "second stage, as many batches with boxes, no image labels",
        "shapeworld_detic",
        (*_BOXES_ALONE, *_AS_MANY_BOXES),
        start="boxes",
    ),
    DetectionRun(
        "more_boxes",
        "second stage, boxes in place of image labels: as many iterations",
        "shapeworld_detic",
        _BOXES_ALONE,
        start="boxes",
    ),
    DetectionRun("image_labels", "second stage, image labels in every other batch", "shapeworld_detic", start="boxes"),
    DetectionRun(
        "cross_boxes",
        "second stage with boxes alone, as many iterations",
        "shapeworld_detic_cross_datasets",
        ("DATASETS.TEST", str((COCO, OBJECTS365))),
        start="more_boxes",
        eval_only=True,
    ),
    DetectionRun(
        "cross_image_labels",
        "second stage with image labels",
        "shapeworld_detic_cross_datasets",
        ("DATASETS.TEST", str((COCO, OBJECTS365))),
        start="image_labels",
        eval_only=True,
    ),
)


class DetectionStudy:
    """A folder with the data sets and the runs made on them.

    Args:
        folder: where everything goes.
        worlds: the data.
        overrides: ``KEY VALUE`` pairs for all runs.
    """

    def __init__(
        self, folder: str | os.PathLike, worlds: DetectionWorlds | None = None, overrides: Sequence[str] = ()
    ) -> None:
        self.folder = Path(folder)
        self.worlds = worlds or DetectionWorlds()
        self.overrides = tuple(overrides)

    @property
    def data(self) -> Path:
        """What ``DETECTRON2_DATASETS`` has to name."""
        return self.folder / "datasets"

    def draw(self, *, workers: int = 1, progress: Progress | None = None) -> None:
        """Draw the data that are not there yet."""
        draw_worlds(self.data / FOLDER, self.worlds, workers=workers, progress=progress)

    def run_all(
        self, seeds: Sequence[int], *, jobs: int = 1, announce: Callable[[str], None] = print
    ) -> dict[str, list[dict[str, Any]]]:
        """Every run with every seed.

        Args:
            jobs: runs side by side.
        Returns:
            Run name -> one entry per seed: ``results`` (data set -> metric in percent), ``seconds``.
        """
        if not seeds:
            raise InputError("no seed given; give at least one")
        waiting: dict[tuple[str, int], Future[dict[str, Any]]] = {}
        with ThreadPoolExecutor(jobs) as pool:

            def after_its_start(run: DetectionRun, seed: int) -> dict[str, Any]:
                if run.start:  # was submitted before, so it is done or at work
                    waiting[run.start, seed].result()
                return self.result(run, seed, announce)

            for seed in seeds:
                for run in RUNS:
                    waiting[run.name, seed] = pool.submit(after_its_start, run, seed)
            return {run.name: [waiting[run.name, seed].result() for seed in seeds] for run in RUNS}

    def result(self, run: DetectionRun, seed: int, announce: Callable[[str], None] = print) -> dict[str, Any]:
        """Metrics of one run, from its file or made now."""
        path = self.run_folder(run.name, seed) / "study.json"
        settings = self._settings(run, seed)
        with suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.get("settings") == settings:
                return found
        began = time.monotonic()
        self._execute(run, seed)
        content = json.loads((path.parent / "results.json").read_text(encoding="utf-8"))
        found = {
            "settings": settings,
            "results": {name: self.metrics(name, tasks["bbox"]) for name, tasks in content.items()},
            "seconds": time.monotonic() - began,
        }
        write_json(path, found)
        shown = ", ".join(
            f"{name.split('_')[1]} AP {metrics['AP']:.1f} novel {metrics['novel']:.1f}"
            for name, metrics in found["results"].items()
        )
        announce(f"seed {seed}, {run.name}: {shown} ({found['seconds']:.0f} s)")
        return found

    def run_folder(self, name: str, seed: int) -> Path:
        return self.folder / "runs" / f"seed{seed}" / name

    def command(self, run: DetectionRun, seed: int) -> list[str]:
        """Arguments of ``tools/train_net.py``."""
        pairs = {
            "OUTPUT_DIR": str(self.run_folder(run.name, seed)),
            "SEED": str(seed),
            "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH": str(self.data / FOLDER / CAT_INFO),
            "MODEL.WEIGHTS": str(self.run_folder(run.start, seed) / "model_final.pth") if run.start else "",
        }
        if run.shuffled:
            pairs["MODEL.CLASS_EMBEDDINGS.PATH"] = str(self._shuffled_file(seed))
        words = ["--config-file", str(_CONFIGS / f"{run.config}.yaml"), "--num-gpus", "1"]
        words += ["--eval-only"] if run.eval_only else ["--resume"]
        return [*words, *run.overrides, *self.overrides, *(word for pair in pairs.items() for word in pair)]

    def _execute(self, run: DetectionRun, seed: int) -> None:
        if run.shuffled:
            self._write_shuffled(seed)
        folder = self.run_folder(run.name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, str(_TRAIN_NET), *self.command(run, seed)]
        environment = {**os.environ, "DETECTRON2_DATASETS": str(self.data)}
        environment.setdefault("OMP_NUM_THREADS", "1")
        with open(folder / "output.txt", "w", encoding="utf-8") as output:
            output.write(shlex.join(words) + "\n")
            output.flush()
            done = subprocess.run(
                words, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=_REPOSITORY, check=False
            )
        if done.returncode:
            raise InputError(f"{run.name} with seed {seed} failed with exit code {done.returncode}; see {output.name}")

    def _settings(self, run: DetectionRun, seed: int) -> str:
        """Hash of what the result depends on."""
        files = [(_CONFIGS / f"{run.config}.yaml").read_text(), (_CONFIGS / "shapeworld_boxsup.yaml").read_text()]
        content = [asdict(run), files, self.overrides, asdict(self.worlds), seed]
        content += [self._settings(_named(run.start), seed)] if run.start else []
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def metrics(self, data_set: str, metrics: Mapping[str, float]) -> dict[str, float]:
        """AP and AP50 of all classes and AP of novel and of base classes, in percent."""
        found = {"AP": metrics["AP"], "AP50": metrics["AP50"]}
        if data_set == LVIS:  # its groups by frequency: novel classes are the rare ones
            return found | {"novel": metrics["APr"], "common": metrics["APc"], "frequent": metrics["APf"]}
        for kind, names in classes_by_split(self._categories(_ANNOTATIONS[data_set])).items():
            values = [metrics[f"AP-{name}"] for name in names]
            known = [value for value in values if value is not None and value == value]  # others have no things there
            found[kind] = statistics.mean(known) if known else float("nan")
        return found

    def annotations(self, data_set: str) -> Path:
        """The json of a test set."""
        return self.data / FOLDER / _ANNOTATIONS[data_set]

    def _categories(self, file: str) -> list[dict[str, Any]]:
        return json.loads((self.data / FOLDER / file).read_text(encoding="utf-8"))["categories"]

    def _shuffled_file(self, seed: int) -> Path:
        return self.folder / "class_embeddings" / f"shuffled_seed{seed}.safetensors"

    def _write_shuffled(self, seed: int) -> None:
        """The embeddings of the prompt in the config, each with the name of another class."""
        from detection.setup import load_config

        prompt = load_config(_CONFIGS / "shapeworld_boxsup.yaml").MODEL.CLASS_EMBEDDINGS.PROMPT
        names = [category["name"] for category in self._categories("lvis/lvis/lvis_v1_train.json")]
        made = ClassEmbeddings.make(load_clip(TINY_CLIP_NAME), names, prompt)
        made.shuffled(seed).save(self._shuffled_file(seed))


def _named(name: str) -> DetectionRun:
    return next(run for run in RUNS if run.name == name)


def render(study: DetectionStudy, seeds: Sequence[int], results: dict[str, list[dict[str, Any]]], command: str) -> str:
    """The Markdown section about the study."""
    lvis, report = study.worlds.lvis, Report("ShapeWorld, detection")
    seconds = sum(result["seconds"] for of_seeds in results.values() for result in of_seeds)
    report.add(
        Text(
            f"Scenes in LVIS' format: {lvis.num_classes} base classes with boxes in {lvis.train_images:,} training "
            f"images (long-tailed), {lvis.num_novel} novel classes, unseen combinations of seen attributes, without "
            f"any box; {lvis.val_images} test images. Image labels: {study.worlds.pictures_per_class} pictures of one "
            "thing of every class, base and novel. Detector: Detic's CenterNet2 with three cascade stages on a tiny "
            "ResNet from random weights, images of 160 pixels, the class embeddings of the tiny CLIP "
            f"(`{TINY_CLIP_NAME}`); `configs/detection/shapeworld_*.yaml`."
        ),
        Text(
            f"Box AP in percent, mean ± standard deviation over the seeds {', '.join(map(str, seeds))} of training; "
            "the data stay the same. Rows of one seed share their first stage."
        ),
        Commands([command]),
        Text(f"{seconds / 60:.0f} process minutes of training and evaluation on {_machine()}, without drawing."),
    )
    report.section("Novel classes")
    columns = ("novel", "common", "frequent", "AP", "AP50")
    rows = [_row(run, results[run.name], LVIS, columns) for run in RUNS if LVIS in results[run.name][0]["results"]]
    report.add(Table(["", "AP novel", "AP common", "AP frequent", "AP", "AP50"], rows, text_columns=(0,)))
    report.section("Other data sets, without training on them")
    columns = ("base", "novel", "AP", "AP50")
    rows = [
        [title, *_row(run, results[run.name], data_set, columns)]
        for data_set, title in _FOREIGN.items()
        for run in RUNS
        if data_set in results[run.name][0]["results"]
    ]
    report.add(
        Text(
            f"Scenes in COCO's format with {len(study.worlds.coco.things)} classes and in that of Objects365 with "
            f"{len(study.worlds.objects365.things)}; no image of either was trained on."
        ),
        Table(["format", "", "AP base", "AP novel", "AP", "AP50"], rows, text_columns=(0, 1)),
    )
    return report.markdown()


def _row(run: DetectionRun, of_seeds: Sequence[dict[str, Any]], data_set: str, columns: Sequence[str]) -> list[str]:
    found = [result["results"][data_set] for result in of_seeds]
    return [run.title, *(_mean_and_deviation(metrics[column] for metrics in found) for column in columns)]


def _mean_and_deviation(values: Iterable[float]) -> str:
    """ "12.3 ± 0.4", or the value alone."""
    values = list(values)
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}"
