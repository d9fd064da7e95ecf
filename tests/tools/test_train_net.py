"""``tools/train_net.py``: choice of the task, exit codes, several processes, and a run that is killed."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

import third_party  # noqa: F401  (makes detectron2 importable)
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_lvis_instances
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.pretrain import TrainingInterrupted
from tests.detection.tiny_runs import CLASS_NAMES, command, write_config
from tests.prompt_pretrain import processes
from tests.tools.test_elastic import NEVER, torchrun
from tools import train_net

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def task_of(*arguments: str) -> str:
    return train_net.find_task(train_net.parse_args(list(arguments)))


def test_task_follows_the_meta_architecture_through_the_bases(tmp_path: Path) -> None:
    assert task_of("--config-file", str(write_config(tmp_path))) == "detection"
    assert task_of() == "detection"  # detectron2's default is a detector
    assert task_of("MODEL.META_ARCHITECTURE", "CenterNetDetector") == "detection"


def test_task_option_wins() -> None:
    assert task_of("--task", "detection", "MODEL.META_ARCHITECTURE", "Nix") == "detection"


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(train_net.main, list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


def test_what_no_task_knows_is_bad_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = complaint(capsys, "MODEL.META_ARCHITECTURE", "Nix")
    assert "MODEL.META_ARCHITECTURE is 'Nix', expected one of" in text and "CustomRCNN" in text
    monkeypatch.setattr(train_net, "_exists", lambda task: task == "detection")
    assert "this installation has no package 'segmentation'" in complaint(capsys, "MODEL.META_ARCHITECTURE", "Nix")
    assert "--task segmentation: this installation has no" in complaint(capsys, "--task", "segmentation")


def test_bad_files_and_settings_are_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no config file nix.yaml" in complaint(capsys, "--config-file", "nix.yaml")
    (tmp_path / "bad.yaml").write_text("- 1\n")
    assert "bad.yaml" in complaint(capsys, "--config-file", str(tmp_path / "bad.yaml"))
    config = ["--config-file", str(write_config(tmp_path))]
    assert "SOLVER.NIX" in complaint(capsys, *config, "SOLVER.NIX", "1")
    assert "coco_nix" in complaint(capsys, *config, "DATASETS.TRAIN", "('coco_nix',)")
    assert "give --config-file" in complaint(capsys)
    labels = [*config[:2], "--train-images", "a", "--train-labels", "b"]
    assert "--train-labels is an option of segmentation, but the" in complaint(capsys, *labels)
    boxes = ["--task", "segmentation", "--test-json", "a.json", "SOLVER.MAX_ITER", "1"]
    assert "--test-json is an option of detection" in complaint(capsys, *boxes)
    assert "--train-json needs --train-images" in complaint(capsys, *config[:2], "--train-json", "a.json")


def test_a_broken_annotation_file_to_evaluate_on_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lvis.json").write_text('{"images": [{"id": 1, "hei')
    register_lvis_instances("broken_set", {"thing_classes": list(CLASS_NAMES)}, str(tmp_path / "lvis.json"), ".")
    try:
        text = complaint(capsys, "--eval-only", *command(tmp_path, "DATASETS.TEST", "('broken_set',)", test=False))
    finally:
        DatasetCatalog.remove("broken_set")
        MetadataCatalog.remove("broken_set")
    assert text.startswith(f"error: the data set cannot be loaded: {tmp_path}/lvis.json is not valid JSON: Unterm")


def start(arguments: list[str], log: Path) -> BaseProcess:
    """The command in a process of its own, which has the imports done."""
    return processes.start(run_in_process, arguments, log)


def run_in_process(arguments: list[str], log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(run_command(train_net.main, arguments))


def succeed(arguments: list[str], log: Path) -> str:
    """What the command says; it must end well."""
    process = start(arguments, log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    return log.read_text()


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "run/model_final.pth", weights_only=True)["model"]


@pytest.mark.slow
def test_killed_run_resumes_and_ends_bit_identical(tmp_path: Path) -> None:
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    succeed(command(folders[0], "SOLVER.MAX_ITER", "6"), tmp_path / "whole.log")
    arguments = command(folders[1], "SOLVER.MAX_ITER", "6")
    killed = start(arguments, tmp_path / "killed.log")
    deadline = time.monotonic() + 120
    while not (folders[1] / "run/last_checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    killed.join()
    assert not (folders[1] / "run/model_final.pth").exists(), (tmp_path / "killed.log").read_text()
    assert "training from iteration 2 to 6" in succeed(["--resume", *arguments], tmp_path / "resumed.log")
    one, other = map(final_weights, folders)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())

    # The result is what an evaluation reads, and its table is there.
    evaluation = ["--eval-only", *command(folders[0], "MODEL.WEIGHTS", str(folders[1] / "run/model_final.pth"))]
    succeed(evaluation, tmp_path / "test.log")
    tables = [(folder / "run/results.md").read_text() for folder in folders]
    assert tables[0] == tables[1]
    assert json.loads((folders[0] / "run/results.json").read_text())["custom_test"].keys() == {"bbox", "segm"}


@pytest.mark.slow
def test_two_processes_train_alike_under_both_launchers(tmp_path: Path) -> None:
    folders = [tmp_path / "launch", tmp_path / "torchrun"]
    for folder in folders:
        folder.mkdir()
    short = ["SOLVER.MAX_ITER", "2", "FIND_UNUSED_PARAM", "True"]
    launch = ["--num-gpus", "2", "--dist-url", "auto", *command(folders[0], *short, test=False)]
    script = [sys.executable, str(ROOT / "tools" / "train_net.py"), *launch]
    done = subprocess.run(script, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    torchrun(tmp_path / "torchrun logs", "train_net", NEVER, command(folders[1], *short, test=False))
    one, other = map(final_weights, folders)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


class Task:
    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def main(self, args: object) -> None:
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "code"), [(None, 0), (InputError("no such thing"), 2), (TrainingInterrupted("stopped after 3"), 130)]
)
def test_exit_code_of_a_process_reaches_the_command(
    error: Exception | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_net, "_module", lambda task: Task(error))
    monkeypatch.setattr(train_net, "find_task", lambda args: "detection")
    rest = {"num_machines": 1, "machine_rank": 0, "config_file": "any.yaml"}
    monkeypatch.setattr(train_net, "parse_args", lambda argv: SimpleNamespace(**argv, **rest))

    def in_one_process(function: Callable[..., None], *sizes: int, args: tuple, **options: object) -> None:
        try:
            function(*args)
        except SystemExit as left:
            raise ProcessExitedException("", error_index=0, error_pid=1, exit_code=left.code) from None

    monkeypatch.setattr(train_net, "launch", in_one_process)
    assert run_command(train_net.main, {"num_gpus": 2, "dist_url": "auto"}) == code
    err = capsys.readouterr().err
    assert err == ("" if error is None else f"error: {error}\n" if code == 2 else f"{error}\n")
    assert run_command(train_net.main, {"num_gpus": 1, "dist_url": "auto"}) == code


def test_other_processes_leave_the_complaint_to_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(train_net, "_module", lambda task: Task(InputError("x")))
    monkeypatch.setattr(train_net.time, "sleep", waited.append)
    with pytest.raises(InputError):
        train_net._run_after_main("detection", argparse.Namespace())
    assert not waited
    monkeypatch.setattr(train_net.comm, "is_main_process", lambda: False)
    with pytest.raises(InputError):
        train_net._run_after_main("detection", argparse.Namespace())
    assert waited == [5]
