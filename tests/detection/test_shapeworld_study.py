"""The bookkeeping of the ShapeWorld detection study; training itself is replaced."""

import json
from pathlib import Path
from typing import Any

import pytest

import detection  # noqa: F401  makes a detectron2 importable
from detection.api import CONFIG_FOLDER
from detection.setup import load_config
from detection.shapeworld_study import COCO, LVIS, OBJECTS365, RUNS, DetectionRun, DetectionStudy, render
from prompt_pretrain.errors import InputError
from tests.detection.test_shapeworld_worlds import WORLDS


class Study(DetectionStudy):
    """Pretends to train and to evaluate."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, WORLDS)
        self.done: list[str] = []

    def execute(self, run: DetectionRun, seed: int) -> None:
        folder = self.run_folder(run.name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        assert not run.start or (self.run_folder(run.start, seed) / "model_final.pth").is_file()
        (folder / "model_final.pth").touch()
        self.done.append(f"{run.name} {seed}")
        lvis = {"AP": 5.0 + seed, "AP50": 10.0, "APr": 1.0, "APc": 2.0, "APf": 3.0}
        results = {LVIS: {"bbox": lvis}}
        if run.eval_only:
            files = {COCO: "coco/coco/annotations/instances_val2017.json"}
            files[OBJECTS365] = "objects365/annotations/zhiyuan_objv2_val_fixname.json"
            results = {name: {"bbox": self._coco_metrics(file)} for name, file in files.items()}
        (folder / "results.json").write_text(json.dumps(results))

    def _coco_metrics(self, file: str) -> dict[str, float]:
        names = [category["name"] for category in self._categories(file)]
        values = {f"AP-{name}": float("nan") if number == 0 else 4.0 for number, name in enumerate(names)}
        return {"AP": 4.0, "AP50": 8.0, **values}


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

    text = render(study, [1, 2], results, "python tools/shapeworld_detection.py")
    assert "| boxes of base classes | 1.0 ± 0.0 | 2.0 ± 0.0 | 3.0 ± 0.0 | 6.5 ± 0.7 | 10.0 ± 0.0 |" in text
    assert "| Objects365 | second stage with image labels | 4.0 ± 0.0 |" in text
    assert "6 base classes with boxes in 12 training images" in text


def test_commands_are_those_of_train_net(study: Study) -> None:
    by_name = {run.name: study.command(run, 3) for run in RUNS}
    assert "--eval-only" in by_name["cross_boxes"] and "--eval-only" not in by_name["boxes"]
    for run in RUNS:
        words = by_name[run.name]
        file, pairs = words[1], [word for word in words[4:] if not word.startswith("--")]
        cfg = load_config(file, pairs)
        assert cfg.SEED == 3 and cfg.OUTPUT_DIR.endswith(f"seed3/{run.name}")
        assert bool(cfg.MODEL.WEIGHTS) == bool(run.start)
        assert bool(cfg.MODEL.CLASS_EMBEDDINGS.PATH) == run.shuffled
        assert bool(cfg.WITH_IMAGE_LABELS) is ("image_labels" in run.name or run.eval_only)


def test_other_settings_are_other_results(study: Study) -> None:
    run: Any = RUNS[0]
    other = DetectionStudy(study.folder, WORLDS, ["SOLVER.MAX_ITER", "7"])
    assert study.settings(run, 1) not in (study.settings(run, 2), other.settings(run, 1))
    with pytest.raises(InputError, match="no seed given"):
        study.run_all([])


def test_published_mechanisms_of_the_configs() -> None:
    first = load_config(CONFIG_FOLDER / "shapeworld_boxsup.yaml")
    assert first.MODEL.ROI_BOX_HEAD.IGNORE_ZERO_CATS  # novel classes are no negatives, as in open-vocabulary COCO
    second = load_config(CONFIG_FOLDER / "shapeworld_detic.yaml")
    assert second.WITH_IMAGE_LABELS and second.MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS == "max_size"
    assert len(load_config(CONFIG_FOLDER / "shapeworld_detic_cross_datasets.yaml").DATASETS.TEST) == 3


def test_what_other_settings_left_is_not_resumed(tmp_path: Path) -> None:
    first = Study(tmp_path)
    run: Any = RUNS[0]
    first.result(run, 1, announce=lambda text: None)
    other = Study(tmp_path)
    other.overrides = ("SOLVER.MAX_ITER", "7")
    left = other.run_folder(run.name, 1) / "model_final.pth"
    seen: list[bool] = []
    other.prepare = lambda run, seed: seen.append(left.exists())  # type: ignore[method-assign]
    other.result(run, 1, announce=lambda text: None)
    assert seen == [False] and left.is_file()
