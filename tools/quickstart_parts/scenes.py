"""The second half of the quickstart: a detector and a segmenter on scenes, with the prompt that the first half learned.

Every training, evaluation and look at pictures is one command of ``tools/``, as a user would type it. One detector and
one segmenter are trained, with the class embeddings of the learned prompt; the other rows give the same weights other
class embeddings for the evaluation.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickstart_parts.tool_run import Runner, ToolRun, repository_path, run_side_by_side

from detection.shapeworld_study import COCO, LVIS, OBJECTS365, DetectionStudy
from detection.shapeworld_worlds import CAT_INFO, DetectionWorlds
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.clip import Clip
from prompt_pretrain.prompt import load_prompt
from prompt_pretrain.shapeworld.label_map_writers import classes_of
from prompt_pretrain.shapeworld.scene_files import SceneRecipe
from prompt_pretrain.shapeworld_study import HARD_PROMPT
from segmentation.shapeworld_study import FOREIGN, SOURCE, SegmentationStudy, SegmentationWorlds, metrics_of

__all__ = ["FAST_SCENES", "FULL_SCENES", "POMP", "ROWS", "SceneOutcome", "ScenePlan", "SceneSteps"]
SEED = 1
POMP, HARD, SHUFFLED = "POMP", "hard prompt", "shuffled embeddings"
ROWS = (SHUFFLED, HARD, POMP)  # of the tables; the first two are given to a model that was trained with the last
DETECTION_SETS = (LVIS, COCO, OBJECTS365)
SEGMENTATION_SETS = (SOURCE, *FOREIGN)
_FORMATS = {  # segmentation set -> kind and field of the worlds
    SOURCE: "coco_stuff",
    **dict(zip(FOREIGN, ("voc", "ade20k", "pascal_context"), strict=True)),
}


@dataclass(frozen=True)
class ScenePlan:
    """What is drawn and trained.

    Attributes:
        detection, segmentation: the worlds.
        detector_steps, segmenter_steps: iterations of the trainings.
        pictures: test images that are shown, of each kind.
        expected: seconds of drawing and of all commands, on two idle cores.
    """

    detection: DetectionWorlds
    segmentation: SegmentationWorlds
    detector_steps: int
    segmenter_steps: int
    pictures: int = 4
    expected: tuple[float, float] = (18.0, 255.0)


def _worlds(
    base: int, novel: int, train_images: int, val_images: int, foreign_images: int
) -> tuple[DetectionWorlds, SegmentationWorlds]:
    """Worlds of few classes, since trainings are short; foreign ones have as many novel as base classes."""

    def foreign(classes: int, seed: int, size: int = 160) -> SceneRecipe:
        return SceneRecipe(classes, classes, train_images=1, val_images=foreign_images, size=size, seed=seed)

    scenes = SceneRecipe(base, novel, train_images, val_images)
    return (
        DetectionWorlds(scenes, foreign(base * 2 // 3, 1), foreign(base, 2), pictures_per_class=1),
        SegmentationWorlds(
            dataclasses.replace(scenes, size=128),
            *(foreign(*which, size=128) for which in ((10, 1), (base * 2 // 3, 2), (base // 2, 3))),
        ),
    )


FULL_SCENES = ScenePlan(*_worlds(60, 20, 500, 100, 60), detector_steps=600, segmenter_steps=1600)
FAST_SCENES = ScenePlan(
    *_worlds(30, 10, 200, 40, 24), detector_steps=240, segmenter_steps=700, pictures=2, expected=(8.0, 126.0)
)


@dataclass
class SceneOutcome:
    """What the report tells of detector and segmenter.

    Attributes:
        detection, segmentation: row of the tables -> data set -> metric in percent.
        losses: name of a training -> rows of its log.
        pictures: title -> picture file and its true class names.
        seconds: title of a command -> its seconds.
        commands: titles and command lines.
    """

    plan: ScenePlan
    detection: dict[str, dict[str, dict[str, float]]]
    segmentation: dict[str, dict[str, dict[str, float]]]
    losses: dict[str, list[dict[str, Any]]]
    pictures: dict[str, list[tuple[Path, list[str]]]]
    seconds: dict[str, float]
    commands: list[tuple[str, str]]


class SceneSteps:
    """Draws the scenes and runs the commands, or finds what is done.

    Args:
        folder: where everything goes.
        plan: what to do.
        clip: the CLIP of the prompt.
        clip_name: how commands name it.
        prompt: file of the learned prompt.
    """

    def __init__(self, folder: Path, plan: ScenePlan, *, clip: Clip, clip_name: str, prompt: Path) -> None:
        self.folder, self.plan = folder, plan
        self.clip, self.clip_name, self.prompt = clip, clip_name, prompt
        self.detection = DetectionStudy(folder, plan.detection)  # both studies keep data in folder/datasets
        self.segmentation = SegmentationStudy(folder, plan.segmentation)

    def draw(self, bar: Callable[[int, int, str], None]) -> None:
        """Draw what is not there yet, and write the shuffled class embeddings.

        In this process: starting others for each of the small worlds takes longer than drawing them.
        """
        seen: dict[str, tuple[int, int]] = {}
        expected = self._scenes()

        def progress(what: str, done: int, total: int) -> None:
            seen[what] = (done, total)
            bar(sum(done for done, _ in seen.values()), max(expected, sum(total for _, total in seen.values())), what)

        self.detection.draw(progress=progress)
        self.segmentation.draw(progress=lambda what, *counts: progress(f"{what}, maps", *counts))
        self._write_shuffled()

    def run(self, bar: Callable[[int, int, str], None]) -> None:
        """Train, evaluate and look at pictures, detection and segmentation side by side where there are two cores.

        Raises:
            InputError: a command failed.
            TrainingInterrupted: one was stopped.
        """
        cores = os.cpu_count() or 1
        runner = Runner(threads=max(cores // 2, 1))
        run_side_by_side(runner, (self.detection_runs(), self.segmentation_runs()), jobs=min(cores, 2), show=bar)

    def outcome(self) -> SceneOutcome:
        detection, segmentation = self.detection_runs(), self.segmentation_runs()
        rows = (POMP, HARD, SHUFFLED)
        return SceneOutcome(
            self.plan,
            {
                row: {name: self.detection.metrics(name, tasks["bbox"]) for name, tasks in run.results.items()}
                for row, run in zip(rows, detection, strict=False)
            },
            {
                row: {name: metrics_of(tasks) for name, tasks in run.results.items()}
                for row, run in zip(rows, segmentation, strict=False)
            },
            {"detector": detection[0].metrics, "segmenter": segmentation[0].metrics},
            self._pictures(detection[3:], segmentation[3:]),
            {run.title: run.seconds for run in (*detection, *segmentation)},
            [(run.title, run.command) for run in (*detection, *segmentation)],
        )

    def detection_runs(self) -> tuple[ToolRun, ...]:
        """Training with evaluation, evaluation with other embeddings, pictures."""
        trained = self.folder / "runs" / "detector"
        common = {
            "DATASETS.TEST": str(DETECTION_SETS),
            "MODEL.RESET_CLS_TESTS": "True",
            "MODEL.CLASS_EMBEDDINGS.CLIP": self.clip_name,
            "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH": str(self._data / "shapeworld" / CAT_INFO),
            "SEED": str(SEED),
        }
        prompt = "MODEL.CLASS_EMBEDDINGS.PROMPT"
        files = tuple(str(self._shuffled_file(name)) for name in DETECTION_SETS)
        train = {"SOLVER.MAX_ITER": str(self.plan.detector_steps), "SOLVER.BASE_LR": "0.004"}
        return self._chain(
            "detector",
            "configs/detection/shapeworld_boxsup.yaml",
            common,
            train | {prompt: str(self.prompt)},
            {HARD: {prompt: HARD_PROMPT}, SHUFFLED: {prompt: str(self.prompt), "MODEL.TEST_CLASSIFIERS": str(files)}},
            self.plan.detector_steps,
        ) + (
            self._demo("detector on test scenes", trained, self._shown_scenes(), "--confidence-threshold", "0.3"),
            self._demo(
                "the same detector, other words", trained, self._shown_scenes(),
                "--custom-vocabulary", self._other_words(), "--confidence-threshold", "0.1",
            ),
        )  # fmt: skip

    def segmentation_runs(self) -> tuple[ToolRun, ...]:
        """Training with evaluation, evaluation with other embeddings, pictures."""
        trained = self.folder / "runs" / "segmenter"
        common = {
            "DATASETS.TEST": str(SEGMENTATION_SETS),
            "MODEL.CLASS_EMBEDDINGS.CLIP": self.clip_name,
            "SEED": str(SEED),
        }
        prompt = "MODEL.CLASS_EMBEDDINGS.PROMPT"
        return self._chain(
            "segmenter",
            "configs/segmentation/shapeworld_maskformer.yaml",
            common,
            {"SOLVER.MAX_ITER": str(self.plan.segmenter_steps), prompt: str(self.prompt)},
            {HARD: {prompt: HARD_PROMPT}, SHUFFLED: {"MODEL.CLASS_EMBEDDINGS.PATH": str(self._shuffled_file("maps"))}},
            self.plan.segmenter_steps,
        ) + (self._demo("segmenter on test scenes", trained, self._shown_maps()),)

    def _chain(
        self,
        name: str,
        config: str,
        common: dict[str, str],
        train: dict[str, str],
        evaluate: dict[str, dict[str, str]],
        iterations: int,
    ) -> tuple[ToolRun, ...]:
        """Train with the learned prompt and evaluate, then evaluate with other class embeddings."""
        runs = self.folder / "runs"
        weights = runs / name / "model_final.pth"
        start = ("--config-file", repository_path(config), "--num-gpus", "1")

        def run(
            title: str, folder: str, flag: str, pairs: dict[str, str], inputs: Sequence[Path], **more: Any
        ) -> ToolRun:
            pairs = {"OUTPUT_DIR": str(runs / folder), **pairs}
            words = (*start, flag, *(word for pair in pairs.items() for word in pair))
            environment = {"DETECTRON2_DATASETS": str(self._data)}
            return ToolRun(title, "tools/train_net.py", words, runs / folder, tuple(inputs), environment, **more)

        period = {"SOLVER.CHECKPOINT_PERIOD": "50"}
        recipe = self._data / "shapeworld" / ("lvis" if name == "detector" else "coco_stuff") / "shapeworld.json"
        trained = run(
            f"train and evaluate the {name}", name, "--resume", common | train | period, [self.prompt, recipe],
            iterations=iterations,
        )  # fmt: skip
        return (
            trained,
            *(
                run(
                    f"evaluate the {name} with {'a ' if row == HARD else ''}{row}",
                    f"{name}_{row.replace(' ', '_')}",
                    "--eval-only",
                    common | pairs | {"MODEL.WEIGHTS": str(weights)},
                    [weights, self.prompt],
                )
                for row, pairs in evaluate.items()
            ),
        )

    def _demo(self, title: str, trained: Path, pictures: Sequence[Path], *options: str) -> ToolRun:
        output = self.folder / "pictures" / title.replace(" ", "_").replace(",", "")
        weights = trained / "model_final.pth"
        words = ("--config-file", str(trained / "config.yaml"), "--weights", str(weights))
        inputs = ("--input", *map(str, pictures), "--output", str(output))
        environment = {"DETECTRON2_DATASETS": str(self._data)}
        return ToolRun(title, "tools/demo.py", (*words, *inputs, *options), output, (weights,), environment)

    @property
    def _data(self) -> Path:
        return self.detection.data

    def _scenes(self) -> int:
        """How many pictures will be drawn."""
        worlds, maps = self.plan.detection, self.plan.segmentation
        recipes = (worlds.lvis, worlds.coco, worlds.objects365, maps.coco_stuff, maps.voc, maps.ade20k)
        scenes = sum(recipe.train_images + recipe.val_images for recipe in (*recipes, maps.pascal_context))
        return scenes + worlds.pictures_per_class * len(worlds.lvis.things)

    def _shuffled_file(self, name: str) -> Path:
        return self.folder / "class_embeddings" / f"shuffled_{name}.safetensors"

    def _write_shuffled(self) -> None:
        """Class embeddings of the learned prompt with rows in another order, for every test set."""
        kinds = {name: getattr(self.plan.segmentation, kind) for name, kind in _FORMATS.items()}
        rows = (entry["name"] for name, recipe in kinds.items() for entry in classes_of(_FORMATS[name], recipe))
        names = {"maps": list(dict.fromkeys(rows))}
        names |= {name: _category_names(self.detection.annotations(name)) for name in DETECTION_SETS}
        for name, class_names in names.items():
            made = ClassEmbeddings.make(self.clip, class_names, load_prompt(self.prompt))
            made.shuffled(SEED).save(self._shuffled_file(name))

    def _shown_scenes(self) -> list[Path]:
        """Test scenes with novel things at fixed places of the list, whatever is found in them."""
        content = _read(self.detection.annotations(LVIS))
        novel = {category["id"] for category in content["categories"] if category["frequency"] == "r"}
        with_novel = {entry["image_id"] for entry in content["annotations"] if entry["category_id"] in novel}
        images = [image for image in content["images"] if image["id"] in with_novel]
        folder = self._data / "shapeworld" / "lvis" / "coco"
        return [folder / _relative(images[place]) for place in _spread(len(images), self.plan.pictures)]

    def _other_words(self) -> str:
        """The things of these scenes without their patterns, "red star": words that no training used."""
        names = {name for of_scene in self._true_things(self._shown_scenes()).values() for name in of_scene}
        return ",".join(sorted({" ".join(name.split()[1:]) for name in names}))

    def _shown_maps(self) -> list[Path]:
        images = sorted((self._data / "shapeworld" / "coco_stuff" / "coco" / "val2017").glob("*.jpg"))
        return [images[place] for place in _spread(len(images), self.plan.pictures)]

    def _pictures(
        self, detection: Sequence[ToolRun], segmentation: Sequence[ToolRun]
    ) -> dict[str, list[tuple[Path, list[str]]]]:
        scenes, maps = self._shown_scenes(), self._shown_maps()
        things, areas = self._true_things(scenes), self._true_areas(maps)
        found = {run.title: [(run.folder / path.name, things[path]) for path in scenes] for run in detection}
        return found | {run.title: [(run.folder / path.name, areas[path]) for path in maps] for run in segmentation}

    def _true_things(self, scenes: Sequence[Path]) -> dict[Path, list[str]]:
        content = _read(self.detection.annotations(LVIS))
        names = {category["id"]: category["name"].replace("_", " ") for category in content["categories"]}
        ids = {Path(_relative(image)).name: image["id"] for image in content["images"]}
        found: dict[int, list[str]] = {}
        for entry in content["annotations"]:
            found.setdefault(entry["image_id"], []).append(names[entry["category_id"]])
        return {path: found.get(ids[path.name], []) for path in scenes}

    def _true_areas(self, maps: Sequence[Path]) -> dict[Path, list[str]]:
        import numpy as np
        from PIL import Image

        names = [entry["name"] for entry in classes_of("coco_stuff", self.plan.segmentation.coco_stuff)]
        labels = {path: _label_map_of(path) for path in maps}
        values = {path: np.unique(np.asarray(Image.open(label))) for path, label in labels.items()}
        return {path: [names[value] for value in of if value < len(names)] for path, of in values.items()}


def _label_map_of(image: Path) -> Path:
    return image.parents[1] / "stuffthingmaps_detectron2" / image.parent.name / f"{image.stem}.png"


def _category_names(annotations: Path) -> list[str]:
    """Class names of a json in the order of labels."""
    categories = sorted(_read(annotations)["categories"], key=lambda category: category["id"])
    return [category["name"] for category in categories]


def _relative(image: dict[str, Any]) -> str:
    """Path of an image of LVIS, which tells it by its place on the web."""
    return "/".join(image["coco_url"].split("/")[-2:]) if "coco_url" in image else image["file_name"]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _spread(count: int, wanted: int) -> list[int]:
    wanted = min(count, wanted)
    return [(2 * place + 1) * count // (2 * wanted) for place in range(wanted)]
