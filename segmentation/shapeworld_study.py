"""The ShapeWorld segmentation study behind docs/RESULTS.md: what class embeddings and prompts give unseen classes.

How its runs are done, and kept, is in `prompt_pretrain.study_runs`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.clip import load_clip
from prompt_pretrain.report import Commands, Report, Table, Text
from prompt_pretrain.shapeworld import TINY_CLIP_NAME
from prompt_pretrain.shapeworld.label_map_writers import FORMATS, classes_of, write_label_maps
from prompt_pretrain.shapeworld.scene_files import SceneRecipe
from prompt_pretrain.shapeworld.writers import Recipe
from prompt_pretrain.shapeworld_results import machine
from prompt_pretrain.shapeworld_study import PromptRun, ShapeWorldStudy
from prompt_pretrain.study_runs import StudyRuns, result_row
from segmentation.data.datasets.shapeworld import FOLDER
from segmentation.setup import load_config

__all__ = ["MARKERS", "RUNS", "SegmentationRun", "SegmentationStudy", "SegmentationWorlds", "render"]
_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SOURCE = "shapeworld_stuff_sem_seg_val"
FOREIGN = {
    "shapeworld_voc_sem_seg_val": "VOC",
    "shapeworld_ade20k_sem_seg_val": "ADE20K",
    "shapeworld_pcontext_sem_seg_val": "PASCAL-Context",
}
MARKERS = ("<!-- ShapeWorld segmentation: begin -->", "<!-- ShapeWorld segmentation: end -->")
Progress = Callable[[str, int, int], None]
_EVERYWHERE = ("DATASETS.TEST", str((SOURCE, *FOREIGN)))
_SINGLE = (
    *("MODEL.CLIP_ADAPTER.PROMPT_LEARNER", "predefined"),
    *("MODEL.CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES", '["a sculpture of a {}."]'),
)
_NO_CROPS = ("MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE", "False")


@dataclass(frozen=True)
class SegmentationWorlds:
    """What is drawn.

    Attributes:
        coco_stuff: the scenes to train on and to evaluate on.
        voc, ade20k, pascal_context: foreign scenes; only their validation images are used.
        pomp: pictures to pre-train prompts on.
    """

    coco_stuff: SceneRecipe = field(
        default_factory=lambda: SceneRecipe(num_classes=100, num_novel=20, train_images=800, val_images=60, size=128)
    )
    voc: SceneRecipe = field(
        default_factory=lambda: SceneRecipe(
            num_classes=10, num_novel=10, train_images=1, val_images=25, size=128, seed=1
        )
    )
    ade20k: SceneRecipe = field(
        default_factory=lambda: SceneRecipe(
            num_classes=100, num_novel=40, train_images=1, val_images=25, size=128, seed=2
        )
    )
    pascal_context: SceneRecipe = field(
        default_factory=lambda: SceneRecipe(
            num_classes=30, num_novel=20, train_images=1, val_images=25, size=128, seed=3
        )
    )
    pomp: Recipe = field(default_factory=lambda: Recipe(num_classes=800, num_novel=1, images_per_class=4))


@dataclass(frozen=True)
class SegmentationRun:
    """One training or evaluation.

    Attributes:
        name: of its folder.
        title: in tables.
        config: name in ``configs/segmentation``.
        overrides: ``KEY VALUE`` pairs.
        start: run whose weights are evaluated; "" to train, or nothing if ``train`` is off.
        prompt: where PROMPT_CHECKPOINT comes from: a run of stage 1, "pomp" for the pre-trained prompt, "" for none.
        shuffled: whether class embeddings belong to other classes than their names say.
        train: False to evaluate a prompt as it is.
    """

    name: str
    title: str
    config: str = "shapeworld_maskformer"
    overrides: tuple[str, ...] = ()
    start: str = ""
    prompt: str = ""
    shuffled: bool = False
    train: bool = True


def _learner(kind: str, *more: str) -> tuple[str, ...]:
    return ("MODEL.CLIP_ADAPTER.PROMPT_LEARNER", kind, *more, *_EVERYWHERE)


RUNS = (
    SegmentationRun("stage1_learned", "learned on masks (stage 1)", "shapeworld_stage1"),
    SegmentationRun("stage1_pomp", "POMP, tuned on masks (stage 1)", "shapeworld_stage1_pomp", prompt="pomp"),
    SegmentationRun("stage1_untrained_single", "single template", "shapeworld_stage1", _SINGLE, train=False),
    SegmentationRun("stage1_untrained_pomp", "POMP", "shapeworld_stage1_pomp", prompt="pomp", train=False),
    SegmentationRun("single", "single template", overrides=_EVERYWHERE),
    SegmentationRun("shuffled", "the same, trained with shuffled embeddings", shuffled=True),
    SegmentationRun("queries", "queries alone, no crops", overrides=_NO_CROPS, start="single"),
    SegmentationRun("shuffled_queries", "the same, shuffled", overrides=_NO_CROPS, start="shuffled", shuffled=True),
    SegmentationRun("imagenet", "80 ImageNet templates", overrides=_learner("imagenet")),
    SegmentationRun("vild", "14 ViLD templates", overrides=_learner("vild")),
    SegmentationRun(
        "learned",
        "learned on masks (stage 1)",
        overrides=_learner("learnable"),
        prompt="stage1_learned",
    ),
    SegmentationRun("pomp", "POMP", overrides=_learner("pomp"), prompt="pomp"),
    SegmentationRun(
        "pomp_tuned",
        "POMP, tuned on masks (stage 1)",
        overrides=_learner("pomp_tuned"),
        prompt="stage1_pomp",
    ),
)
_ON_MASKS = ("stage1_untrained_single", "stage1_learned", "stage1_untrained_pomp", "stage1_pomp")
_PROMPTS = ("single", "imagenet", "vild", "learned", "pomp", "pomp_tuned")


class SegmentationStudy(StudyRuns[SegmentationRun]):
    """A folder with the data sets and the runs made on them.

    Args:
        folder: where everything goes.
        worlds: the data.
        overrides: ``KEY VALUE`` pairs for all runs.
    """

    runs = RUNS

    def __init__(
        self, folder: str | os.PathLike, worlds: SegmentationWorlds | None = None, overrides: Sequence[str] = ()
    ) -> None:
        super().__init__(folder, overrides)
        self.worlds = worlds or SegmentationWorlds()

    def draw(self, *, workers: int = 1, progress: Progress | None = None) -> None:
        """Draw the data that are not there yet."""
        for kind in FORMATS:

            def report(done: int, total: int, kind: str = kind) -> None:
                if progress:
                    progress(f"{kind} scenes", done, total)

            recipe = getattr(self.worlds, kind)
            write_label_maps(self.data / FOLDER / kind, kind, recipe, workers=workers, progress=report)

    def pretrain(self, seeds: Sequence[int], *, workers: int = 1, progress: Progress | None = None) -> None:
        """Pre-train the POMP prompts that are not there yet, one per seed."""
        study = ShapeWorldStudy(
            self.folder / "pomp",
            self.worlds.pomp,
            config_file=_CONFIGS / "prompt_pretrain" / "shapeworld_tiny.yaml",
            overrides=("OPTIM.MAX_EPOCH", "20"),
            workers=workers,
        )
        missing = [seed for seed in seeds if not self.pomp_prompt(seed).is_file()]
        if not missing:
            return
        study.write_world(lambda done, total: progress("pictures for POMP", done, total) if progress else None)
        study.encode_images(missing)
        for seed in missing:
            # The last epoch: on held-out pictures of a world this small the epochs differ by chance.
            found = study.train(PromptRun("pomp", seed=seed)).result.last_prompt
            with atomic_writer(self.pomp_prompt(seed)) as file:
                file.write(found.read_bytes())

    def pomp_prompt(self, seed: int) -> Path:
        return self.folder / "pomp" / f"prompt_seed{seed}.pth.tar"

    def needed(self, run: SegmentationRun) -> list[str]:
        return [name for name in (run.start, run.prompt) if name and name != "pomp"]

    def prepare(self, run: SegmentationRun, seed: int) -> None:
        if run.shuffled:
            self._write_shuffled(seed)

    def command(self, run: SegmentationRun, seed: int) -> list[str]:
        """Arguments of ``tools/train_net.py``."""
        pairs = {"OUTPUT_DIR": str(self.run_folder(run.name, seed)), "SEED": str(seed)}
        if run.start:
            pairs["MODEL.WEIGHTS"] = str(self.run_folder(run.start, seed) / "model_final.pth")
        if run.prompt:
            stage_1 = self.run_folder(run.prompt, seed) / "model_final.pth"
            prompt = self.pomp_prompt(seed) if run.prompt == "pomp" else stage_1
            pairs["MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT"] = str(prompt)
        if run.shuffled:
            pairs["MODEL.CLASS_EMBEDDINGS.PATH"] = str(self._shuffled_file(seed))
        words = [
            "--config-file",
            str(_config_file(run)),
            "--num-gpus",
            "1",
            "--resume" if run.train and not run.start else "--eval-only",
        ]
        return [*words, *run.overrides, *self.overrides, *(word for pair in pairs.items() for word in pair)]

    def described(self, run: SegmentationRun, seed: int) -> list[Any]:
        config = load_config(_config_file(run), [*run.overrides, *self.overrides]).dump()
        return [asdict(run), config, asdict(self.worlds), seed]

    def shown_metrics(self, data_set: str, tasks: Mapping[str, Any]) -> dict[str, float]:
        return metrics_of(tasks)

    def _shuffled_file(self, seed: int) -> Path:
        return self.folder / "class_embeddings" / f"shuffled_seed{seed}.safetensors"

    def _write_shuffled(self, seed: int) -> None:
        """The embeddings of the single template, each with the name of another class."""
        templates = load_config(_config_file(_named("single"))).MODEL.CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES
        names = [entry["name"] for entry in classes_of("coco_stuff", self.worlds.coco_stuff)]
        made = ClassEmbeddings.make(load_clip(TINY_CLIP_NAME), names, templates)
        made.shuffled(seed).save(self._shuffled_file(seed))


def _config_file(run: SegmentationRun) -> Path:
    return _CONFIGS / "segmentation" / f"{run.config}.yaml"


def metrics_of(tasks: Mapping[str, Any]) -> dict[str, float]:
    """What the tables show of one data set's results."""
    metrics = tasks.get("sem_seg", tasks)
    if "hIoU-base" in metrics:
        names = {"hIoU": "hIoU-base", "seen": "mIoU-base", "unseen": "mIoU-unbase", "pACC": "pACC"}
    elif "mIoU" in metrics:
        names = {"mIoU": "mIoU", "fwIoU": "fwIoU", "pACC": "pACC"}
    else:
        names = {"seen": "acc_top1_base", "unseen": "acc_top1_w/o_base"}
    return {short: metrics[name] for short, name in names.items()}


def _named(name: str) -> SegmentationRun:
    return next(run for run in RUNS if run.name == name)


def render(
    study: SegmentationStudy, seeds: Sequence[int], results: dict[str, list[dict[str, Any]]], command: str
) -> str:
    """The Markdown section about the study."""
    worlds, report = study.worlds, Report("ShapeWorld, segmentation")
    stuff = worlds.coco_stuff
    seconds = sum(result["seconds"] for of_seeds in results.values() for result in of_seeds)
    seen = stuff.num_classes + len(FORMATS["coco_stuff"].grounds)
    report.add(
        Text(
            f"Scenes in COCO-Stuff's format: {seen} seen classes ({stuff.num_classes} things, the rest grounds) in "
            f"{stuff.train_images:,} training images of {stuff.size} pixels, {stuff.num_novel} unseen things, unseen "
            f"combinations of seen attributes, ignored in training; {stuff.val_images} test images with all of them. "
            f"CLIP: the tiny one (`{TINY_CLIP_NAME}`), whose frozen image tower is the backbone too, so that minutes "
            "of training suffice. `configs/segmentation/shapeworld_*.yaml`."
        ),
        Text(
            f"Percent, mean ± standard deviation over the seeds {', '.join(map(str, seeds))} of training; the data "
            "stay the same."
        ),
        Commands([command]),
        Text(f"{seconds / 60:.0f} process minutes of training and evaluation on {machine()}, without drawing."),
    )
    report.section("Unseen classes")
    rows = [
        result_row(_named(name), results[name], SOURCE, ("hIoU", "seen", "unseen", "pACC"))
        for name in ("single", "shuffled", "queries", "shuffled_queries")
    ]
    report.add(Table(["", "hIoU", "mIoU seen", "mIoU unseen", "pACC"], rows, text_columns=(0,)))
    report.section("Prompts")
    report.add(
        Text(
            "A segmenter for each prompt and seed, trained with that prompt (stage 2), which also classifies the crops."
        ),
        Table(
            ["", "hIoU", "mIoU seen", "mIoU unseen", "pACC"],
            [result_row(_named(name), results[name], SOURCE, ("hIoU", "seen", "unseen", "pACC")) for name in _PROMPTS],
            text_columns=(0,),
        ),
        Text("The prompts by themselves: top-1 accuracy on crops of ground-truth masks among all classes."),
        Table(
            ["", "seen", "unseen"],
            [
                result_row(_named(name), results[name], f"{SOURCE}_classification", ("seen", "unseen"))
                for name in _ON_MASKS
            ],
            text_columns=(0,),
        ),
    )
    report.section("Other data sets, without training on them")
    counts = ", ".join(
        f"{title} {len(classes_of(kind, getattr(worlds, kind)))}"
        for kind, title in zip(("voc", "ade20k", "pascal_context"), FOREIGN.values(), strict=True)
    )
    report.add(
        Text(f"Scenes in the formats of other data sets, with classes of their own ({counts}), none marked as seen."),
        Table(
            ["format", "prompt", "mIoU", "fwIoU", "pACC"],
            [
                [title, *result_row(_named(name), results[name], data_set, ("mIoU", "fwIoU", "pACC"))]
                for data_set, title in FOREIGN.items()
                for name in _PROMPTS
            ],
            text_columns=(0, 1),
        ),
    )
    return report.markdown()
