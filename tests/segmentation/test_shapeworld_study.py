"""The bookkeeping of the ShapeWorld segmentation study; training itself is replaced."""

import json
from pathlib import Path
from typing import Any

import pytest

import segmentation  # noqa: F401  makes a detectron2 importable
from detectron2.data import DatasetCatalog
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld.scene_files import SceneRecipe
from prompt_pretrain.shapeworld.writers import Recipe
from segmentation.data.datasets.shapeworld import FOLDER
from segmentation.setup import load_config
from segmentation.shapeworld_study import FOREIGN, RUNS, SOURCE, SegmentationStudy, SegmentationWorlds, render

TINY = {"train_images": 4, "val_images": 2, "size": 48}
WORLDS = SegmentationWorlds(
    coco_stuff=SceneRecipe(num_classes=5, num_novel=3, **TINY),
    voc=SceneRecipe(num_classes=3, num_novel=2, **TINY),
    ade20k=SceneRecipe(num_classes=4, num_novel=4, **TINY),
    pascal_context=SceneRecipe(num_classes=3, num_novel=3, **TINY),
    pomp=Recipe(num_classes=4, num_novel=1, images_per_class=2, val_per_class=1, size=16),
)
SEMANTIC = {"mIoU": 4.0, "fwIoU": 5.0, "pACC": 6.0}


class Study(SegmentationStudy):
    """Pretends to train and to evaluate."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, WORLDS)
        self.done: list[str] = []

    def execute(self, run: Any, seed: int) -> None:
        folder = self.run_folder(run.name, seed)
        assert not (folder / "model_final.pth").exists()  # nothing is left of other settings
        for name in filter(None, (run.start, run.prompt)):
            assert name == "pomp" or (self.run_folder(name, seed) / "model_final.pth").is_file()
        (folder / "model_final.pth").touch()
        self.done.append(f"{run.name} {seed}")
        split = {"mIoU-base": 3.0, "mIoU-unbase": 1.0 + seed, "hIoU-base": 2.0}
        results: dict[str, Any] = {SOURCE: {"sem_seg": SEMANTIC | split}}
        if "DATASETS.TEST" in run.overrides:
            results |= {name: {"sem_seg": SEMANTIC} for name in FOREIGN}
        if run.config.startswith("shapeworld_stage1"):
            results = {f"{SOURCE}_classification": {"acc_top1_base": 70.0, "acc_top1_w/o_base": 60.0}}
        (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(tmp_path_factory.mktemp("study"))
    study.draw()
    return study


def test_the_study_runs_once_and_reports(study: Study) -> None:
    said: list[str] = []
    results = study.run_all([1, 2], jobs=2, announce=said.append)
    assert sorted(study.done) == sorted(f"{run.name} {seed}" for run in RUNS for seed in (1, 2))
    assert len(said) == 2 * len(RUNS)
    again = study.run_all([1, 2], announce=said.append)
    assert again == results and len(study.done) == 2 * len(RUNS)  # from the files

    text = render(study, [1, 2], results, "python tools/shapeworld_segmentation.py")
    assert "| single template | 2.0 ± 0.0 | 3.0 ± 0.0 | 2.5 ± 0.7 | 6.0 ± 0.0 |" in text
    assert "| ADE20K | POMP | 4.0 ± 0.0 | 5.0 ± 0.0 | 6.0 ± 0.0 |" in text
    assert "| learned on masks (stage 1) | 70.0 ± 0.0 | 60.0 ± 0.0 |" in text
    assert "11 seen classes (5 things, the rest grounds) in 4 training images" in text
    assert "(VOC 5, ADE20K 20, PASCAL-Context 12)" in text


def test_commands_are_those_of_train_net(study: Study) -> None:
    for run in RUNS:
        words = study.command(run, 3)
        cfg = load_config(words[1], [word for word in words[4:] if not word.startswith("--")])
        assert cfg.SEED == 3 and cfg.OUTPUT_DIR.endswith(f"seed3/{run.name}")
        assert ("--eval-only" in words) == (bool(run.start) or not run.train)
        assert bool(cfg.MODEL.WEIGHTS) == bool(run.start)
        assert bool(cfg.MODEL.CLASS_EMBEDDINGS.PATH) == run.shuffled
        assert bool(cfg.MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT) == bool(run.prompt)
        assert set(cfg.DATASETS.TRAIN) | set(cfg.DATASETS.TEST) <= set(DatasetCatalog.list())


def test_shuffled_embeddings_are_those_of_other_classes(study: Study) -> None:
    study._write_shuffled(5)
    found = ClassEmbeddings.load(study._shuffled_file(5))
    names = (study.data / FOLDER / "coco_stuff" / "classes.txt").read_text().splitlines()
    assert list(found.class_names) == names
    other = SegmentationStudy(study.folder, WORLDS)
    other._write_shuffled(6)
    assert not found.embeddings.equal(ClassEmbeddings.load(study._shuffled_file(6)).embeddings)


def test_other_settings_are_other_results(study: Study) -> None:
    run: Any = RUNS[0]
    other = SegmentationStudy(study.folder, WORLDS, ["SOLVER.MAX_ITER", "7"])
    assert study.settings(run, 1) not in (study.settings(run, 2), other.settings(run, 1))
    with pytest.raises(InputError, match="no seed given"):
        study.run_all([])


def test_the_cross_dataset_config_is_one_command() -> None:
    cfg = load_config(Path(__file__).parents[2] / "configs" / "segmentation" / "shapeworld_cross_datasets.yaml")
    assert tuple(FOREIGN) == cfg.DATASETS.TEST
