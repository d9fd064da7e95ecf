"""From a command line to a config: what is merged, what becomes of it, and the errors."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest

import detection  # noqa: F401  (makes detectron2 importable)
from detection.setup import check_data_sets, check_weights, explained_loading, load_config, setup
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.config import flatten
from prompt_pretrain.errors import InputError
from tests.detection.tiny_runs import command, parsed, write_config


@pytest.fixture
def missing_json() -> Iterator[str]:
    DatasetCatalog.register("setup_set", list)
    MetadataCatalog.get("setup_set").set(json_file="nowhere/a.json", thing_classes=["a"])
    yield "setup_set"
    DatasetCatalog.remove("setup_set")
    MetadataCatalog.remove("setup_set")


def test_auto_in_the_output_folder_is_the_name_of_the_file(tmp_path: Path) -> None:
    cfg = load_config(write_config(tmp_path), ["SEED", "4"])
    assert cfg.OUTPUT_DIR == "./output/Detic/tiny"
    assert (cfg.SEED, cfg.MODEL.META_ARCHITECTURE, cfg.is_frozen()) == (4, "CustomRCNN", False)


def test_cuda_becomes_cpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert load_config("", []).MODEL.DEVICE == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert load_config("", []).MODEL.DEVICE == "cuda"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SEED"], "pairs KEY VALUE, but the last one, 'SEED', stands alone"),
        (["SOLVER.NIX", "1"], "the command line: .*SOLVER.NIX"),
        (["SOLVER.MAX_ITER", "many"], "the command line: .*SOLVER.MAX_ITER"),
    ],
)
def test_wrong_settings_are_one_line_errors(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config("", overrides)


def test_wrong_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nix.yaml"):
        load_config(tmp_path / "nix.yaml")
    (tmp_path / "bad.yaml").write_text("SOLVER:\n  NIX: 3\n")
    with pytest.raises(InputError, match=r"bad.yaml: .*NIX"):
        load_config(tmp_path / "bad.yaml")


def test_unknown_and_missing_data_sets_are_errors(missing_json: str) -> None:
    cfg = get_cfg()
    with pytest.raises(InputError, match="'coco_2017_trian' of .* is not registered; did you mean coco_2017_train"):
        check_data_sets(cfg, ["coco_2017_trian"])
    with pytest.raises(InputError, match="is not registered; --train-json and --test-json take COCO files"):
        check_data_sets(cfg, ["%"])
    with pytest.raises(InputError, match="setup_set: annotations nowhere/a.json not found; .*DETECTRON2_DATASETS"):
        check_data_sets(cfg, [missing_json])


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/resnet50_miil_21k.pkl", "ImageNet-21K Pretraining for the Masses"),
        ("models/swin_base_patch4_window7_224_22k.pkl", "Swin Transformer: Hierarchical"),
        ("models/BoxSup-C2_L_CLIP_R5021k_640b64_4x.pth", "Detecting Twenty-thousand Classes"),
        ("output/r2_101.pkl", "Res2Net"),
        ("output/Detic/BoxSup-C2_L_x/model_final.pth", "result of training with BoxSup-C2_L_x.yaml; train"),
        ("output/Detic/BoxSup-C2_L_x_pomp/model_final.pth", "released with .*Prompt Pre-Training with Twenty-Thousand"),
        ("mine.pth", "give an existing file, or '' to start from random weights"),
    ],
)
def test_missing_weights_are_named_with_their_source(path: str, source: str) -> None:
    with pytest.raises(InputError, match=f"MODEL.WEIGHTS {path} not found; .*{source}"):
        check_weights(path)


def test_weights_that_are_no_local_files_pass() -> None:
    check_weights("")
    check_weights("detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    check_weights(f"{__file__}?matching_heuristics=True")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("x"), "W not found; give an existing file"),
        (URLError("no network"), "W cannot be read or fetched .*no network.*; download it"),
        (ValueError("cut off"), "W cannot be used: cut off"),
        (InputError("as it is"), "^as it is$"),
    ],
)
def test_trouble_with_reading_weights_is_explained(error: Exception, message: str) -> None:
    with pytest.raises(InputError, match=message), explained_loading("W"):
        raise error


def test_setup_freezes_and_writes_the_config(tmp_path: Path, missing_json: str) -> None:
    opts = ["OUTPUT_DIR", str(tmp_path / "out"), "DATASETS.TRAIN", f"('{missing_json}',)", "DATASETS.TEST", "()"]
    rand = ["MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH", "rand"]
    args = argparse.Namespace(config_file=str(write_config(tmp_path)), opts=[*opts, *rand], eval_only=True)
    cfg = setup(args)  # training data need not be there for an evaluation
    assert cfg.is_frozen()
    again = get_cfg()
    from detection.task import add_config

    add_config(again)
    again.merge_from_file(str(tmp_path / "out/config.yaml"))
    assert json.dumps(flatten(again)) == json.dumps(flatten(cfg))  # files do not tell tuples from lists
    with pytest.raises(InputError, match="nowhere/a.json"):
        setup(argparse.Namespace(config_file=args.config_file, opts=args.opts, eval_only=False))


def test_missing_weights_are_told_before_the_config_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for settings, message in (
        (("MODEL.WEIGHTS", "none.pth"), "MODEL.WEIGHTS none.pth not found"),
        (("MODEL.WITH_CAPTION", "True", "MODEL.CAPTION_CLIP", "c.pt"), "MODEL.CAPTION_CLIP: no CLIP file c.pt"),
    ):
        with pytest.raises(InputError, match=message):
            setup(parsed(command(tmp_path, *settings, test=False)))
    assert "SOLVER" not in capsys.readouterr().out and not (tmp_path / "run" / "config.yaml").exists()
