import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from prompt_pretrain.command_line import run_command
from prompt_pretrain.prompt import load_prompt
from tests.prompt_pretrain import tiny_run
from tools import pretrain_prompt

TOOL = Path(pretrain_prompt.__file__)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return tiny_run.prepare(tmp_path_factory.mktemp("files"))


def arguments(files: Path, out: Path, *extra: str) -> list[str]:
    return tiny_run.settings(files, "OUTPUT_DIR", str(out), "OPTIM.MAX_EPOCH", "2", *extra)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_it_trains_and_names_the_files_and_the_next_command(files, tmp_path, capsys):
    config = tmp_path / "my_run.yaml"
    config.write_text("TRAINER: {POMP: {N_CTX: 2}}\n")
    options = ["--config-file", str(config), "--seed", "3", "--online-augment", "--memory-budget", "1GB"]
    assert run_command(pretrain_prompt.main, [*options, *arguments(files, tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    prompts = tmp_path / "run" / "prompt_learner"
    assert f"best prompt (epoch 1): {prompts / 'model-best.pth.tar'}" in printed
    assert f"last prompt (epoch 2): {prompts / 'model.pth.tar-2'}" in printed
    assert f"python tools/export_class_embeddings.py --prompt {prompts / 'model.pth.tar-2'}" in printed
    prompt = load_prompt(prompts / "model.pth.tar-2")
    assert prompt.n_ctx == 2 and prompt.metadata["seed"] == 3


def test_the_published_command_line_is_understood(tmp_path):
    data = tmp_path / "imagenet_21k.yaml"
    data.write_text("DATASET:\n  NAME: 'ImageNet21K'\n")
    args = pretrain_prompt.parse_args([
        "--root", "DATA", "--seed", "42", "--trainer", "POMP", "--dataset-config-file", str(data),
        "--output-dir", "out", "TRAINER.POMP.N_CTX", "16", "TRAINER.POMP.CSC", "False", "DATASET.NUM_SHOTS", "-1",
    ])  # fmt: skip
    assert args.overrides[-2:] == ["DATASET.NUM_SHOTS", "-1"]
    assert (args.data_root, args.output_dir, args.seed, args.dataset_config_file) == ("DATA", "out", "42", str(data))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["TRAINER.POMP.N_CTXX", "4"], "there is no config key TRAINER.POMP.N_CTXX; did you mean TRAINER.POMP.N_CTX?"),
        (["--config-file", "/nowhere.yaml"], "config file /nowhere.yaml not found"),
        (["--memory-budget", "8 apples"], "MEMORY_BUDGET is '8 apples'; expected a positive size"),
        (["TRAINER.POMP.UPDATE_CLASS_NUM", "100"], "UPDATE_CLASS_NUM is 100 but ImageFolder has 8 classes"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(files, tmp_path, capsys, extra, message):
    assert run_command(pretrain_prompt.main, [*arguments(files, tmp_path / "run"), *extra]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and message in error[-1]


@pytest.mark.slow
def test_two_processes_reach_the_prompt_of_one(files, tmp_path):
    size = "DATALOADER.TRAIN_X.BATCH_SIZE"
    assert run_command(pretrain_prompt.main, arguments(files, tmp_path / "one", size, "8")) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(TOOL)]
    command = [*launcher, *arguments(files, tmp_path / "two", size, "4")]
    subprocess.run(command, env=environment(), check=True, capture_output=True, cwd="/", timeout=120)
    found = [load_prompt(tmp_path / name / "prompt_learner" / "model.pth.tar-2").ctx for name in ("one", "two")]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_terminated_command_says_how_to_go_on(files, tmp_path):
    long = arguments(files, tmp_path / "run", "OPTIM.MAX_EPOCH", "100000", "TRAIN.CHECKPOINT_FREQ", "0")
    process = subprocess.Popen(
        [sys.executable, str(TOOL), *long], env=environment(), stderr=subprocess.PIPE, text=True, cwd="/"
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("checkpoints/state-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "run the same command again to continue" in errors.strip().splitlines()[-1]
