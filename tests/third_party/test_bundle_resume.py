"""A training that is killed and resumed ends as if nothing had happened, bit by bit on the CPU."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from detectron2.engine import hooks
from detectron2.utils.events import EventStorage, JSONWriter
from tests.third_party.toy_training import ToyTrainer, config, final_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Sums may depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(trainer_class: type[ToyTrainer], output_dir: Path, *settings: Any, resume: bool = False) -> ToyTrainer:
    trainer = trainer_class(config(output_dir, *settings))
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def assert_same_end(one: Path, other: Path) -> None:
    first, second = (torch.load(folder / "model_final.pth", weights_only=True) for folder in (one, other))
    assert first["model"].keys() == second["model"].keys()
    for name, weights in first["model"].items():
        assert torch.equal(weights, second["model"][name]), name
    assert first["iteration"] == second["iteration"]
    assert first["trainer"]["hooks"] == second["trainer"]["hooks"]
    assert first["trainer"]["resume"] == second["trainer"]["resume"]
    states = [checkpoint["trainer"]["_trainer"]["optimizer"] for checkpoint in (first, second)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for index, state in states[0]["state"].items():
        assert torch.equal(state["momentum_buffer"], states[1]["state"][index]["momentum_buffer"])


def resume_at(iteration: int, source: Path, target: Path) -> None:
    """Make ``target`` the folder of a training that was interrupted after ``iteration``."""
    target.mkdir()
    name = f"model_{iteration:07d}.pth"
    shutil.copy(source / name, target / name)
    (target / "last_checkpoint").write_text(name)


@pytest.mark.parametrize("seed", [5, -1])
@pytest.mark.parametrize("grouping", [True, False])
def test_every_checkpoint_resumes_to_the_same_end(seed: int, grouping: bool, tmp_path: Path) -> None:
    settings = ("SEED", seed, "DATALOADER.ASPECT_RATIO_GROUPING", grouping)
    train(ToyTrainer, tmp_path / "whole", *settings)
    for iteration in (1, 5):
        folder = tmp_path / f"from{iteration}"
        resume_at(iteration, tmp_path / "whole", folder)
        trainer = train(ToyTrainer, folder, *settings, resume=True)
        assert trainer.start_iter == iteration + 1
        assert_same_end(tmp_path / "whole", folder)


def test_precise_bn_and_evaluation_leave_no_trace(tmp_path: Path) -> None:
    class Evaluating(ToyTrainer):
        @classmethod
        def test(cls, cfg: Any, model: Any, evaluators: Any = None) -> dict[str, Any]:
            return {"random": {"number": torch.rand(()).item()}}

    settings = ("SEED", -1, "TEST.EVAL_PERIOD", 3, "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 3)
    train(Evaluating, tmp_path / "whole", *settings)
    resume_at(1, tmp_path / "whole", tmp_path / "resumed")
    train(Evaluating, tmp_path / "resumed", *settings, resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "resumed")


def test_different_seeds_end_differently(tmp_path: Path) -> None:
    for seed in (1, 2):
        train(ToyTrainer, tmp_path / str(seed), "SEED", seed)
    one, other = (final_weights(tmp_path / str(seed)) for seed in (1, 2))
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


def test_resuming_a_finished_training_changes_nothing(tmp_path: Path) -> None:
    train(ToyTrainer, tmp_path)
    before = (tmp_path / "model_final.pth").read_bytes()
    trainer = train(ToyTrainer, tmp_path, resume=True)
    assert trainer.start_iter == trainer.iter == 8
    assert (tmp_path / "model_final.pth").read_bytes() == before


def test_without_resume_a_checkpoint_is_not_looked_at(tmp_path: Path) -> None:
    train(ToyTrainer, tmp_path, "SOLVER.MAX_ITER", 2)
    trainer = ToyTrainer(config(tmp_path))
    trainer.resume_or_load(resume=False)
    assert trainer.start_iter == 0


def test_a_checkpoint_of_the_real_detectron2_resumes_with_new_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(ToyTrainer, tmp_path, "SOLVER.MAX_ITER", 2)
    file = tmp_path / "model_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["trainer"]["resume"]
    torch.save(checkpoint, file)
    trainer = ToyTrainer(config(tmp_path))
    trainer.checkpointer.logger.parent.propagate = True
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    assert "data starts anew" in caplog.text


def test_the_best_value_survives_a_resume(tmp_path: Path) -> None:
    best = hooks.BestCheckpointer(1, None, "AP")
    assert best.state_dict() == {}
    best.best_metric, best.best_iter = 0.5, 3
    resumed = hooks.BestCheckpointer(1, None, "AP")
    resumed.load_state_dict(best.state_dict())
    assert (resumed.best_metric, resumed.best_iter) == (0.5, 3)


def test_a_half_written_line_of_metrics_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    for before, kept in (('{"a": 1}\n{"iteration": 1', 1), ('{"b": ', 0), ('{"a": 1}\n', 1), ("x" * 9000, 0)):
        file.write_text(before)
        writer = JSONWriter(str(file))
        with EventStorage(2) as storage:
            storage.put_scalar("a", 1)
            writer.write()
        writer.close()
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert lines[kept:] == [{"a": 1.0, "iteration": 2}]
        assert len(lines) == kept + 1


def run_until_killed(output_dir: Path, *crash: str) -> int:
    command = [sys.executable, "-m", "tests.third_party.toy_training", str(output_dir), *crash]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert finished.returncode in (0, -9), finished.stdout + finished.stderr
    return finished.returncode


@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    """Before the first checkpoint is noted, in the middle of things, and before the second checkpoint is complete."""
    for moment in ("rename:2", "step:3", "rename:1"):
        assert run_until_killed(tmp_path / "killed", moment) == -9, moment
    assert run_until_killed(tmp_path / "killed") == 0
    train(ToyTrainer, tmp_path / "whole")  # here, without worker processes, which make no difference either
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
