"""Extras of the bundle: several processes on the CPU, ``torchrun``, mixed precision without a GPU, joint clipping."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.engine import AMPTrainer, create_ddp_model, launch
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from tests.third_party.toy_training import PlainTrainer, config, final_weights, losses, train_and_record

ROOT = Path(__file__).parents[2]
TORCHRUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "0", "LOCAL_RANK": "0"}


def plain_config(folder: Path) -> Any:
    folder.mkdir()
    return config(folder, "DATALOADER.ASPECT_RATIO_GROUPING", False)


@pytest.mark.slow
def test_two_processes_train_to_the_losses_of_one(tmp_path: Path) -> None:
    train_and_record(PlainTrainer, plain_config(tmp_path / "one"))
    launch(train_and_record, 2, dist_url="auto", args=(PlainTrainer, plain_config(tmp_path / "two")))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)
    weights = final_weights(tmp_path / "one"), final_weights(tmp_path / "two")
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_processes_of_torchrun_are_joined(tmp_path: Path) -> None:
    script = (
        "import sys, third_party; from tests.third_party.test_bundle_launch import *\n"
        "launch(train_and_record, 1, args=(PlainTrainer, plain_config(Path(sys.argv[1]) / "
        "f'rank{os.environ[\"RANK\"]}')))\n"
    )
    file = tmp_path / "script.py"
    file.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    train_and_record(PlainTrainer, plain_config(tmp_path / "one"))
    assert list(losses(tmp_path / "rank0").values()) == pytest.approx(list(losses(tmp_path / "one").values()), rel=1e-5)
    assert not (tmp_path / "rank1" / "losses.txt").exists()


def test_one_process_runs_right_here() -> None:
    calls = []
    launch(lambda *args: calls.append((args, comm.get_world_size())), 1, args=(1, "a"))
    assert calls == [((1, "a"), 1)]


def test_one_process_of_torchrun_runs_right_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TORCHRUN, "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    calls = []
    launch(calls.append, 1, args=("here",))
    assert calls == ["here"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_gpus_per_machine": 3}, "--num-gpus is 3 but torchrun started 2"),
        ({"num_gpus_per_machine": 1, "num_machines": 2}, "--num-machines is 2 but torchrun started 1"),
    ],
)
def test_arguments_may_not_contradict_torchrun(
    arguments: dict[str, int], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**TORCHRUN, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=match):
        launch(print, **arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_gpus_per_machine": 0}, "at least one process per machine"),
        ({"num_gpus_per_machine": 1, "num_machines": 2, "machine_rank": 2}, "machine rank 2 of 2 machines"),
        ({"num_gpus_per_machine": 1, "num_machines": 2, "dist_url": "auto"}, "'auto' works on one machine only"),
        ({"num_gpus_per_machine": 2}, "2 processes need a place to meet"),
    ],
)
def test_impossible_launches(arguments: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=match):
        launch(print, **arguments)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RuntimeError, match="2 processes asked for on this machine, which has 1 GPUs"):
        launch(print, 2, dist_url="auto")


def test_one_process_needs_no_wrapper() -> None:
    model = nn.Linear(1, 1)
    assert create_ddp_model(model) is model


class Square(nn.Linear):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return super().forward(batch).square().mean()


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_mixed_precision_on_the_cpu_is_full_precision(precision: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    model = Square(1, 1, bias=False)
    nn.init.ones_(model.weight)
    trainer = AMPTrainer(
        model,
        [torch.ones(1, 1)],
        torch.optim.SGD(model.parameters(), lr=0.001),
        precision=precision,
        log_grad_scaler=True,
    )
    assert "trains in full precision" in caplog.text
    trainer.train(0, 1)
    assert model.weight.item() == pytest.approx(1 - 0.002, abs=1e-7)
    assert trainer.storage.latest()["[metric]grad_scaler"] == (1.0, 0)
    state = trainer.state_dict()
    assert state["grad_scaler"] == {}
    trainer.load_state_dict({**state, "grad_scaler": {"scale": 2.0}})  # of a training on a GPU


def test_unknown_precision() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="torch.float16 or torch.bfloat16"):
        AMPTrainer(model, [], torch.optim.SGD(model.parameters(), lr=1.0), precision=torch.float64)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_mixed_precision_on_a_gpu_follows_full_precision(precision: torch.dtype) -> None:
    data = [torch.randn(8, 4, device="cuda") for _ in range(5)]
    ends = []
    for make in (torch.float32, precision):
        torch.manual_seed(0)
        model = Square(4, 1).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        trainer = AMPTrainer(model, data, optimizer, precision=precision)
        trainer._enabled = make is precision
        trainer.train(0, len(data))
        ends.append(model.weight.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0.02, atol=0.005)


def test_full_model_clipping_uses_one_norm() -> None:
    cfg = get_cfg()
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "full_model", 1.0
    one, other = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD([one, other], lr=1.0))
    one.grad, other.grad = torch.tensor([3.0]), torch.tensor([-4.0])
    optimizer.step()
    assert (one.item(), other.item()) == (pytest.approx(-0.6, rel=1e-5), pytest.approx(0.8, rel=1e-5))


def test_a_clip_value_has_to_be_positive() -> None:
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.0
    with pytest.raises(ValueError, match="SOLVER.CLIP_GRADIENTS.CLIP_VALUE is 0.0; it must be greater than 0"):
        maybe_add_gradient_clipping(cfg, torch.optim.SGD)
