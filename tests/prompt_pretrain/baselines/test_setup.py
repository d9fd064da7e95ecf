import json
from pathlib import Path

import pytest
import torch

from prompt_pretrain.baselines.config import BASELINES
from prompt_pretrain.baselines.files import LEARNERS, load_learner
from prompt_pretrain.baselines.setup import as_prompt_training, train
from prompt_pretrain.baselines.transfer import evaluate_on
from prompt_pretrain.checkpoints import CheckpointFolder
from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.clip import load_clip
from prompt_pretrain.command_line import run_command
from prompt_pretrain.config import load_cfg
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import load_prompt
from tests.prompt_pretrain import tiny_run
from tools import evaluate_baseline, pretrain_prompt

SHALLOW = (
    *("TRAINER.VPT.PROMPT_DEPTH_VISION", "1", "TRAINER.MAPLE.PROMPT_DEPTH", "1"),
    *("TRAINER.LASP.TEMPLATES", "imagenet_select_7", "TRAINER.COOP.N_CTX", "2"),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return tiny_run.prepare(tmp_path_factory.mktemp("files"))


def settings(files: Path, out: Path, name: str, *extra: str) -> list[str]:
    fixed = ("OUTPUT_DIR", str(out), "TRAINER.NAME", name, "OPTIM.MAX_EPOCH", "2", *SHALLOW)
    return tiny_run.settings(files, *fixed, *extra)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_trains_by_config_and_its_file_is_what_was_tested(files, tmp_path, name):
    report = train(load_cfg(None, settings(files, tmp_path, name)))
    last = report.result.last_prompt
    assert (report.result.last_epoch, last.name) == (2, "model.pth.tar-2")
    written = json.loads((tmp_path / "results.json").read_text())["tests"]["last"]["accuracy"]
    assert written == report.tests["last"].accuracy
    if name not in LEARNERS:
        assert load_prompt(last).n_ctx == 2
        return
    clip = load_clip(files / "tiny_clip.json")
    data = load_classification_data("ImageFolder", files / "images", test_only=True)
    again = evaluate_on(load_learner(last, clip), data, cache_folder=files / "features")
    assert again.metrics == report.tests["last"].metrics


@pytest.mark.parametrize("name", ["CoCoOp", "MaPLe", "RPL"])
def test_every_state_on_the_way_leads_to_the_same_model(files, tmp_path, monkeypatch, name):
    states, save = [], CheckpointFolder.save

    def keep(folder, state, step):
        path = save(folder, state, step)
        states.append((path.name, path.read_bytes()))
        return path

    monkeypatch.setattr(CheckpointFolder, "save", keep)
    every = ("TRAIN.CHECKPOINT_STEPS", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "16", "TEST.NO_TEST", "True")
    expected = train(load_cfg(None, settings(files, tmp_path / "whole", name, *every))).result.last_prompt
    monkeypatch.undo()
    assert len(states) == 4
    for file, content in states[:3]:
        folder = tmp_path / file / "checkpoints"
        folder.mkdir(parents=True)
        (folder / file).write_bytes(content)
        found = train(load_cfg(None, settings(files, tmp_path / file, name, *every))).result.last_prompt
        one, other = (torch.load(path, weights_only=True)["state_dict"] for path in (expected, found))
        assert all(torch.equal(other[key], value) for key, value in one.items())


def test_coop_is_the_prompt_training_over_all_classes(files):
    cfg = as_prompt_training(load_cfg(None, ["TRAINER.NAME", "CoOp", "TRAINER.COOP.CSC", "True"]))
    pomp = cfg.TRAINER.POMP
    assert (pomp.EPT, pomp.UPDATE_CLASS_NUM, pomp.N_CTX, pomp.CSC) == (False, "all", 16, True)


def test_one_command_trains_and_another_evaluates(files, tmp_path, capsys):
    assert run_command(pretrain_prompt.main, settings(files, tmp_path, "LASP")) == 0
    model = tmp_path / "prompt_learner" / "model.pth.tar-2"
    printed = capsys.readouterr().out
    assert f"last model (epoch 2): {model}" in printed
    assert f"python tools/evaluate_baseline.py --model {model}" in printed
    places = ["--data-root", str(files / "images"), "--clip", str(files / "tiny_clip.json"), "--num-workers", "0"]
    command = ["--model", str(model), "--datasets", "ImageFolder", *places, "--cache-dir", str(files / "features")]
    assert run_command(evaluate_baseline.main, [*command, "--json", str(tmp_path / "e.json")]) == 0
    row = json.loads((tmp_path / "e.json").read_text())[0]["results"][0]
    assert row["name"] == "LASP"
    trained = json.loads((tmp_path / "results.json").read_text())["tests"]["last"]
    assert row["metrics"]["accuracy"] == trained["accuracy"]
    assert run_command(evaluate_baseline.main, [*command, "--model", str(tmp_path / "none")]) == 2


def test_what_cannot_be_trained_is_named(files, tmp_path):
    for extra, message in (
        (("MODEL.INIT_WEIGHTS", "prompt.pth"), "INIT_WEIGHTS holds a prompt, which VPT does not start from"),
        (("OPTIM.ACCUMULATION_STEPS", "2"), "ACCUMULATION_STEPS is 2, but VPT takes a step at once; set it to 1"),
        (("TRAINER.VPT.PROMPT_DEPTH_VISION", "12"), "prompts of depth 12 .* has 1 layers"),
        (("TRAINER.VPT.N_CTX_VISION", "0"), "N_CTX_VISION is 0; expected at least 1"),
        (("TRAINER.HIERARCHY.MODE", "smooth"), "imagenet21k_miil_tree.pth: No such file"),
        (("TRAINER.HIERARCHY.WEIGHT", "2.0"), "HIERARCHY.WEIGHT is 2.0; expected a share of 0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            train(load_cfg(None, settings(files, tmp_path, "VPT", *extra)))
