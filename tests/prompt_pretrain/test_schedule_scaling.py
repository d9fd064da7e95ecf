"""The linear scaling rule, and what it says."""

import pytest
from fvcore.common.config import CfgNode

from prompt_pretrain import distributed, schedule_scaling
from prompt_pretrain.config import load_cfg
from prompt_pretrain.errors import InputError
from prompt_pretrain.schedule_scaling import scale_schedule, scaled_learning_rate


def config(reference: int, parts: int = 1) -> CfgNode:
    cfg = CfgNode()
    solver = {"IMS_PER_BATCH": 16, "BASE_LR": 0.02, "MAX_ITER": 9000, "WARMUP_ITERS": 1000, "STEPS": (6000, 8000)}
    solver |= {"CHECKPOINT_PERIOD": 500, "TRAIN_ITER": -1}
    cfg.SOLVER = CfgNode(solver | {"REFERENCE_WORLD_SIZE": reference, "ACCUMULATION_STEPS": parts})
    cfg.TEST = CfgNode({"EVAL_PERIOD": 0})
    cfg.freeze()
    return cfg


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    caplog.set_level("INFO", schedule_scaling.__name__)
    return caplog


def test_fewer_processes_take_longer_with_a_smaller_rate(two: pytest.LogCaptureFixture) -> None:
    given = config(8)
    cfg = scale_schedule(given)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (4, 0.005, 36000)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD) == (4000, (24000, 32000), 2000)
    assert cfg.SOLVER.TRAIN_ITER == -1 and cfg.TEST.EVAL_PERIOD == 0  # stay switched off
    assert cfg.is_frozen() and given.SOLVER.MAX_ITER == 9000
    assert (
        "SOLVER.REFERENCE_WORLD_SIZE is 8, here are 2 processes: factor 0.25 by the linear scaling rule; "
        "SOLVER.IMS_PER_BATCH 16 -> 4, SOLVER.BASE_LR 0.02 -> 0.005, SOLVER.MAX_ITER 9000 -> 36000" in two.text
    )
    assert scale_schedule(cfg) == cfg  # neither a second time nor by detectron2's trainer


def test_parts_count_as_processes(two: pytest.LogCaptureFixture) -> None:
    cfg = scale_schedule(config(8, parts=4))
    assert cfg.SOLVER.MAX_ITER == 9000 and cfg.SOLVER.REFERENCE_WORLD_SIZE == 2
    assert "2 processes of 4 parts each, which count as 8: factor 1 by the linear scaling rule; nothing" in two.text


def test_without_a_reference_nothing_changes_and_that_is_said(two: pytest.LogCaptureFixture) -> None:
    given = config(0)
    assert scale_schedule(given) is given
    assert "is 0: learning rate 0.02, 16 images per iteration and 9000 iterations as configured, on 2" in two.text


def test_batches_that_do_not_divide_are_an_error(two: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="IMS_PER_BATCH 16 cannot be scaled from SOLVER.REFERENCE_WORLD_SIZE 3 to 2"):
        scale_schedule(config(3))


def test_the_rate_of_pre_training(two: pytest.LogCaptureFixture) -> None:
    assert scaled_learning_rate(load_cfg(None).OPTIM) == 0.002
    optim = load_cfg(None, ["OPTIM.REFERENCE_WORLD_SIZE", "8", "OPTIM.ACCUMULATION_STEPS", "2"]).OPTIM
    assert scaled_learning_rate(optim) == 0.001
    assert "here are 4 processes: OPTIM.LR 0.002 -> 0.001 by the linear scaling rule" in two.text
