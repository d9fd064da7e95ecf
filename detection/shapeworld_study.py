"""The ShapeWorld detection study behind docs/RESULTS.md: what class embeddings and image labels give novel classes.

How its runs are done, and kept, is in `prompt_pretrain.study_runs`.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detection.data.datasets.shapeworld import FOLDER
from detection.shapeworld_worlds import CAT_INFO, DetectionWorlds, Progress, classes_by_split, draw_worlds
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.clip import load_clip
from prompt_pretrain.report import Commands, Report, Table, Text
from prompt_pretrain.shapeworld import TINY_CLIP_NAME
from prompt_pretrain.shapeworld_results import machine
from prompt_pretrain.study_runs import StudyRuns, result_row

__all__ = ["MARKERS", "RUNS", "DetectionRun", "DetectionStudy", "render"]
_CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "detection"
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


class DetectionStudy(StudyRuns[DetectionRun]):
    """A folder with the data sets and the runs made on them.

    Args:
        folder: where everything goes.
        worlds: the data.
        overrides: ``KEY VALUE`` pairs for all runs.
    """

    runs = RUNS

    def __init__(
        self, folder: str | os.PathLike, worlds: DetectionWorlds | None = None, overrides: Sequence[str] = ()
    ) -> None:
        super().__init__(folder, overrides)
        self.worlds = worlds or DetectionWorlds()

    def draw(self, *, workers: int = 1, progress: Progress | None = None) -> None:
        """Draw the data that are not there yet."""
        draw_worlds(self.data / FOLDER, self.worlds, workers=workers, progress=progress)

    def needed(self, run: DetectionRun) -> list[str]:
        return [run.start] if run.start else []

    def prepare(self, run: DetectionRun, seed: int) -> None:
        if run.shuffled:
            self._write_shuffled(seed)

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

    def described(self, run: DetectionRun, seed: int) -> list[Any]:
        files = [(_CONFIGS / f"{run.config}.yaml").read_text(), (_CONFIGS / "shapeworld_boxsup.yaml").read_text()]
        return [asdict(run), files, self.overrides, asdict(self.worlds), seed]

    def summary(self, results: Mapping[str, Mapping[str, float]]) -> str:
        return ", ".join(
            f"{name.split('_')[1]} AP {metrics['AP']:.1f} novel {metrics['novel']:.1f}"
            for name, metrics in results.items()
        )

    def shown_metrics(self, data_set: str, tasks: Mapping[str, Any]) -> dict[str, float]:
        return self.metrics(data_set, tasks["bbox"])

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
        Text(f"{seconds / 60:.0f} process minutes of training and evaluation on {machine()}, without drawing."),
    )
    report.section("Novel classes")
    columns = ("novel", "common", "frequent", "AP", "AP50")
    rows = [
        result_row(run, results[run.name], LVIS, columns) for run in RUNS if LVIS in results[run.name][0]["results"]
    ]
    report.add(Table(["", "AP novel", "AP common", "AP frequent", "AP", "AP50"], rows, text_columns=(0,)))
    report.section("Other data sets, without training on them")
    columns = ("base", "novel", "AP", "AP50")
    rows = [
        [title, *result_row(run, results[run.name], data_set, columns)]
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
