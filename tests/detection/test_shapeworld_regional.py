"""The comparison of prompts on a tiny world; the training of detectors is replaced."""

import json
from pathlib import Path

import pytest

import detection  # noqa: F401  makes a detectron2 importable
from detection.setup import load_config
from detection.shapeworld_regional import PROMPTS, RegionalComparison, RegionalSettings, render
from detection.shapeworld_study import LVIS, DetectionRun
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.errors import InputError
from tests.detection.test_shapeworld_worlds import WORLDS

SETTINGS = RegionalSettings(
    worlds=WORLDS,
    pomp_classes=6,
    pomp_images=2,
    candidates=4,
    top_k=1,
    pomp=("OPTIM.MAX_EPOCH", "1", "TRAINER.POMP.UPDATE_CLASS_NUM", "4", "TRAIN.TENSORBOARD", "False"),
    rpl=("OPTIM.MAX_EPOCH", "1"),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> RegionalComparison:
    study = RegionalComparison(tmp_path_factory.mktemp("regional"), SETTINGS)
    study.prepare()
    return study


def test_the_comparison_runs_once_and_reports(study: RegionalComparison, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def pretend(run: DetectionRun, seed: int) -> None:
        folder = study.detection.run_folder(run.name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        trained.append(run.name)
        words = study.detection.command(run, seed)
        cfg = load_config(words[1], [word for word in words[4:] if not word.startswith("--")])
        ClassEmbeddings.load(cfg.MODEL.CLASS_EMBEDDINGS.PATH).check(num_classes=9)
        metrics = {"AP": 5.0 + seed, "AP50": 10.0, "APr": 1.0, "APc": 2.0, "APf": 3.0}
        (folder / "results.json").write_text(json.dumps({LVIS: {"bbox": metrics}}))

    monkeypatch.setattr(study.detection, "execute", pretend)
    said: list[str] = []
    results = study.run([1, 2], jobs=2, announce=said.append)
    assert list(results) == list(PROMPTS) and len(trained) == len(set(trained)) + 1 == 6  # hard ones: one file
    files = {study.embeddings(prompt, seed)["file"] for prompt in PROMPTS for seed in (1, 2)}
    assert len(files) == 2 + 3 * 2
    again = study.run([1, 2], announce=said.append)
    assert again == results and len(trained) == 6
    assert results["rpl_web"][0]["images"] > results["rpl"][0]["images"] > 0 == results["hard"][0]["images"]

    text = render(study, [1, 2], results, "python tools/shapeworld_regional.py")
    assert "| RPL, crops of base classes | 1.0 ± 0.0 | 2.0 ± 0.0 | 3.0 ± 0.0 | 6.5 ± 0.7 |" in text
    assert "| hard prompt, “a photo of a {}.” | – | " in text
    assert text.count("second round with web images |") == 1  # crops alone
    more = study.run([1], ["described"], detectors=["described"], announce=said.append)
    assert more["described"][0]["detector"]["results"][LVIS]["AP"] == 6.0 and len(trained) == 7


def test_crops_alone_need_no_detector(study: RegionalComparison) -> None:
    results = study.run([1], ["hard"], detectors=(), announce=lambda text: None)
    assert set(results["hard"][0]["crops"]) == {"base", "novel", "base_among_all", "novel_among_all"}
    assert "AP novel" not in render(study, [1], results, "c")
    with pytest.raises(InputError, match="unknown prompt 'soft'"):
        study.run([1], ["soft"])
    with pytest.raises(InputError, match="a detector for 'pomp', but prompts are hard; add it"):
        study.run([1], ["hard"], detectors=["pomp"])
    with pytest.raises(InputError, match="no seed given"):
        study.run([])


def test_other_settings_are_other_embeddings(study: RegionalComparison, tmp_path: Path) -> None:
    other = RegionalComparison(tmp_path, RegionalSettings(worlds=WORLDS, top_k=2))
    assert other._described("rpl", 1) != study._described("rpl", 1)
    assert other._described("hard", 0) == study._described("hard", 0)
