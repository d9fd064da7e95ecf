"""Commands of which a process is killed: what the others say, and how ``torchrun --max-restarts`` goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from prompt_pretrain.prompt import load_prompt
from prompt_pretrain.run_setup import forget_earlier_run
from tests.detection.tiny_runs import command
from tests.prompt_pretrain import processes, tiny_run
from tests.segmentation.tiny_runs import CLASS_NAMES, write_pictures
from tests.segmentation.tiny_runs import command as segmentation_command
from tests.tools import dying_rank

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
NEVER = 10**9


def torchrun(logs: Path, tool: str, dies_at: int, arguments: list[str]) -> str:
    """What ``torchrun --standalone --nproc-per-node 2 --max-restarts 1`` does; standard errors of all processes.

    Process 1 is killed in step ``dies_at``. Processes are forked from the tests' server, which has the imports done.
    """
    assert processes  # has told the server what to import
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        rdzv_configs={"is_host": True},
        max_restarts=1,
        monitor_interval=0.1,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    elastic_launch(config, dying_rank.run)(tool, 1, dies_at, arguments)
    return "".join(path.read_text() for path in sorted(logs.rglob("std*.log")))


@pytest.mark.slow
def test_pre_training_goes_on_after_a_restart_as_if_nothing_had_happened(tmp_path: Path) -> None:
    tiny_run.prepare(tmp_path)
    settings = ["OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "TRAIN.CHECKPOINT_STEPS", "1"]
    settings += ["OPTIM.REFERENCE_WORLD_SIZE", "1", "TEST.NO_TEST", "True"]
    found, said = [], ""
    for name, dies_at in (("whole", NEVER), ("died", 3)):
        run = tiny_run.settings(tmp_path, "OUTPUT_DIR", str(tmp_path / name), *settings)
        # Not to resume holds for the first start alone.
        said = torchrun(tmp_path / f"{name} logs", "pretrain_prompt", dies_at, ["--no-resume", *run])
        found.append(load_prompt(tmp_path / name / "prompt_learner/model.pth.tar-2").ctx)
    assert "error: process 1 of 2 is gone: it was at step 3, phase data; process 0 stops at step 3, phase" in said
    assert "continuing after step 3 of 8" in said
    assert "here are 2 processes: OPTIM.LR 0.002 -> 0.004 by the linear scaling rule" in said
    assert torch.equal(*found)


@pytest.mark.slow
def test_detection_goes_on_after_a_restart_as_if_nothing_had_happened(tmp_path: Path) -> None:
    settings = ["SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.REFERENCE_WORLD_SIZE", "1", "SOLVER.MAX_ITER", "6"]
    found, said = [], ""
    for name, dies_at in (("whole", NEVER), ("died", 2)):
        (tmp_path / name).mkdir()
        arguments = command(tmp_path / name, *settings, test=False)
        said = torchrun(tmp_path / f"{name} logs", "train_net", dies_at, arguments)
        found.append(torch.load(tmp_path / name / "run/model_final.pth", weights_only=True)["model"])
    assert "error: process 1 of 2 is gone: it was at step 2, phase optimizer; process 0 stops at step 2, phase " in said
    assert "training from iteration 2 to 3" in said
    assert "SOLVER.IMS_PER_BATCH 2 -> 4, SOLVER.BASE_LR 0.0002 -> 0.0004, SOLVER.MAX_ITER 6 -> 3, SOLVER.WARMUP" in said
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def segmentation_arguments(folder: Path, *settings: str) -> list[str]:
    """Arguments of ``tools/train_net.py`` for a run in ``folder/run``, on pictures that are drawn beside it."""
    data, classes = folder / "data", folder / "classes.txt"
    write_pictures(data)
    classes.write_text("\n".join(CLASS_NAMES[:3]))
    arguments = ["--train-images", str(data / "images"), "--train-labels", str(data / "seen")]
    arguments += ["--classes", str(classes)]
    return arguments + segmentation_command(folder, "MODEL.RESNETS.NORM", "FrozenBN", "DATASETS.TEST", "()", *settings)


@pytest.mark.slow
def test_segmentation_goes_on_after_a_restart_as_if_nothing_had_happened(tmp_path: Path) -> None:
    settings = ["SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.REFERENCE_WORLD_SIZE", "1", "SOLVER.MAX_ITER", "6"]
    found, said = [], ""
    for name, dies_at in (("whole", NEVER), ("died", 2)):
        (tmp_path / name).mkdir()
        arguments = segmentation_arguments(tmp_path / name, *settings)
        said = torchrun(tmp_path / f"{name} logs", "train_net", dies_at, arguments)
        found.append(torch.load(tmp_path / name / "run/model_final.pth", weights_only=True)["model"])
    assert "error: process 1 of 2 is gone: it was at step 2, phase backward; process 0 stops at step 2, phase " in said
    assert "Starting training from iteration 2" in said
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.slow
def test_segmentation_under_launch_names_the_process_that_died(tmp_path: Path) -> None:
    arguments = ["--num-gpus", "2", "--dist-url", "auto", *segmentation_arguments(tmp_path)]
    script = [sys.executable, str(ROOT / "tests/tools/dying_rank.py"), "train_net", "1", "1"]
    finished = subprocess.run([*script, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 1
    said = finished.stderr
    assert "error: process 1 of 2 is gone: it was at step 1, phase backward; process 0 stops at step 1, phase " in said
    assert "error: process 1 was ended by SIGKILL; run the same command with --resume to continue" in said


def test_a_restart_never_continues_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pointer, kept = tmp_path / "last_checkpoint", tmp_path / "last_checkpoint_of_earlier_run"
    pointer.write_text("model_final.pth")
    forget_earlier_run(str(tmp_path))  # nobody will start it again
    assert pointer.exists()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    forget_earlier_run(str(tmp_path))  # this is the continued run
    assert pointer.exists()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    forget_earlier_run(str(tmp_path))
    assert not pointer.exists() and kept.read_text() == "model_final.pth"
