"""The training loop, its trainers and hooks, on models of a few numbers."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import Tensor, nn

from detectron2.engine import HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.solver import LRMultiplier
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage


class Slope(nn.Module):
    """Loss: the parameter times the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        loss = self.weight * batch.mean()
        return {"loss_a": loss, "loss_b": 2 * loss}


def batches(*values: float) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]


def trainer_of(model: nn.Module, data: Any, lr: float = 0.1, **kwargs: Any) -> SimpleTrainer:
    return SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), **kwargs)


class Counting(TrainerBase):
    """Steps that do nothing but fail at one iteration."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.fails_at = fails_at

    def run_step(self) -> None:
        if self.iter == self.fails_at:
            raise RuntimeError("broken step")


class Note(HookBase):
    def __init__(self, notes: list[Any], name: str = "") -> None:
        self.notes, self.name = notes, name

    def before_step(self) -> None:
        self.notes.append((self.name, self.trainer.iter, get_event_storage().iter))

    def after_train(self) -> None:
        self.notes.append((self.name, "end", self.trainer.iter))


def test_hooks_run_in_order_with_the_iteration_in_the_storage() -> None:
    notes: list[Any] = []
    trainer = Counting()
    trainer.register_hooks([Note(notes, "a"), None, Note(notes, "b")])
    trainer.train(3, 5)
    assert notes == [("a", 3, 3), ("b", 3, 3), ("a", 4, 4), ("b", 4, 4), ("a", "end", 5), ("b", "end", 5)]


def test_an_error_is_raised_after_the_hooks_have_ended() -> None:
    notes: list[Any] = []
    trainer = Counting(fails_at=1)
    trainer.register_hooks([Note(notes)])
    with pytest.raises(RuntimeError, match="broken step"):
        trainer.train(0, 5)
    assert notes[-1] == ("", "end", 1)


def test_only_hooks_can_be_registered() -> None:
    with pytest.raises(AssertionError):
        Counting().register_hooks([object()])


class Stateful(HookBase):
    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class OtherStateful(Stateful):
    pass


def test_state_holds_the_first_hook_of_each_class(caplog: pytest.LogCaptureFixture) -> None:
    trainer = Counting()
    trainer.register_hooks([Stateful(1), Stateful(2), OtherStateful(3)])
    trainer.iter = 7
    state = trainer.state_dict()
    assert state == {"iteration": 7, "hooks": {"Stateful": {"value": 1}, "OtherStateful": {"value": 3}}}
    other = Counting()
    hook = Stateful(0)
    other.register_hooks([hook])
    logging.getLogger("detectron2").propagate = True
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(state)
    assert (other.iter, hook.value) == (7, 1)
    assert "Cannot find the hook 'OtherStateful'" in caplog.text


def test_steps_follow_the_optimizer_and_metrics_are_stored() -> None:
    model = Slope()
    trainer = trainer_of(model, batches(1.0, 2.0))
    trainer.train(0, 2)
    assert model.weight.item() == pytest.approx(1 - 0.1 * 3 - 0.1 * (6 + 0.9 * 3))
    latest = trainer.storage.latest()
    assert latest["loss_a"] == (pytest.approx(0.7 * 2), 1)
    assert latest["total_loss"] == (pytest.approx(0.7 * 6), 1)
    assert latest["data_time"][1] == latest["rank_data_time"][1] == 1


@pytest.mark.parametrize("settings", [{"zero_grad_before_forward": True}, {"async_write_metrics": True}])
def test_options_change_no_number(settings: dict[str, bool]) -> None:
    plain, other = Slope(), Slope()
    trainers = trainer_of(plain, batches(1.0, 2.0, 3.0)), trainer_of(other, batches(1.0, 2.0, 3.0), **settings)
    for trainer in trainers:
        trainer.train(0, 3)
    assert plain.weight.item() == other.weight.item()
    for name in ("loss_a", "total_loss"):
        assert trainers[0].storage.history(name).values() == trainers[1].storage.history(name).values()


def test_metrics_may_be_gathered_less_often() -> None:
    trainer = trainer_of(Slope(), batches(1.0, 2.0, 3.0, 4.0), gather_metric_period=2)
    trainer.train(0, 4)
    assert [iteration for _, iteration in trainer.storage.history("loss_a").values()] == [1, 3]


class OneLoss(Slope):
    def forward(self, batch: Tensor) -> Tensor:
        return super().forward(batch)["loss_a"]


def test_a_single_loss_is_the_total() -> None:
    trainer = trainer_of(OneLoss(), batches(4.0))
    trainer.train(0, 1)
    assert trainer.storage.latest()["total_loss"] == (4.0, 0)
    assert "loss_a" not in trainer.storage.latest()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(value: float) -> None:
    model = Slope()
    trainer = trainer_of(model, batches(1.0, value))
    with pytest.raises(FloatingPointError, match="infinite or NaN at iteration=1"):
        trainer.train(0, 2)
    assert model.weight.item() == pytest.approx(0.7)


def test_a_model_in_eval_mode_is_refused() -> None:
    trainer = trainer_of(Slope(), batches(1.0))
    trainer.model.eval()
    with pytest.raises(AssertionError, match="eval mode"):
        trainer.train(0, 1)


def test_a_trainer_resumes_from_its_state() -> None:
    values = [1.0, -2.0, 3.0, 0.5]
    whole, first, second = Slope(), Slope(), Slope()

    def trainer_with_schedule(model: nn.Module, data: list[Tensor]) -> SimpleTrainer:
        trainer = trainer_of(model, data)
        scheduler = LinearParamScheduler(1.0, 0.0)
        trainer.register_hooks([hooks.LRScheduler(scheduler=LRMultiplier(trainer.optimizer, scheduler, 4))])
        return trainer

    trainer_with_schedule(whole, batches(*values)).train(0, 4)
    stopped = trainer_with_schedule(first, batches(*values[:2]))
    stopped.train(0, 2)
    resumed = trainer_with_schedule(second, batches(*values[2:]))
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(stopped.state_dict())
    resumed.train(resumed.iter, 4)
    assert second.weight.item() == whole.weight.item()


def test_a_new_loader_takes_over() -> None:
    trainer = trainer_of(Slope(), batches(1.0))
    trainer.train(0, 1)
    trainer.reset_data_loader(lambda: batches(5.0))
    trainer.train(1, 2)
    assert trainer.storage.latest()["loss_a"] == (pytest.approx(0.7 * 5), 1)


def test_callbacks_get_the_trainer() -> None:
    calls: list[Any] = []
    callbacks = {
        when: lambda trainer, when=when: calls.append((when, trainer.iter))
        for when in ("before_train", "before_step", "after_step", "after_train")
    }
    trainer = Counting()
    trainer.register_hooks([hooks.CallbackHook(**callbacks), hooks.CallbackHook()])
    trainer.train(0, 1)
    assert calls == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


def test_the_first_iterations_are_not_timed(caplog: pytest.LogCaptureFixture) -> None:
    trainer = Counting()
    trainer.register_hooks([hooks.IterationTimer(warmup_iter=3)])
    logging.getLogger("detectron2").propagate = True
    with caplog.at_level(logging.INFO):
        trainer.train(10, 15)
    assert [iteration for _, iteration in trainer.storage.history("time").values()] == [12, 13, 14]
    assert "Total training time" in caplog.text


class ListWriter(EventWriter):
    def __init__(self) -> None:
        self.writes: list[int] = []
        self.closed = False

    def write(self) -> None:
        self.writes.append(get_event_storage().iter)

    def close(self) -> None:
        self.closed = True


def test_writers_write_periodically_and_at_the_end() -> None:
    writer = ListWriter()
    trainer = Counting()
    trainer.register_hooks([hooks.PeriodicWriter([writer], period=3)])
    trainer.train(0, 7)
    assert writer.writes == [2, 5, 6, 7]
    assert writer.closed
    with pytest.raises(AssertionError):
        hooks.PeriodicWriter([object()])


def test_checkpoints_are_periodic_and_final(tmp_path: Path) -> None:
    trainer = Counting()
    checkpointer = Checkpointer(Slope(), str(tmp_path))
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2)])
    trainer.train(0, 5)
    names = sorted(file.name for file in tmp_path.glob("*.pth"))
    assert names == ["model_0000001.pth", "model_0000003.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert checkpointer.load(str(tmp_path / "model_0000003.pth"))["iteration"] == 3


@pytest.mark.parametrize(("mode", "saved"), [("max", [1, 5]), ("min", [1, 3])])
def test_the_best_checkpoint_follows_the_metric(mode: str, saved: list[int], tmp_path: Path) -> None:
    scores: Iterator[float] = iter([0.5, 0.2, 0.7, float("nan")])
    iterations: list[int] = []

    class Recording(Checkpointer):
        def save(self, name: str, **kwargs: Any) -> None:
            assert name == "model_best"
            iterations.append(kwargs["iteration"])

    trainer = Counting()
    best = hooks.BestCheckpointer(2, Recording(Slope(), str(tmp_path)), "bbox/AP", mode)
    trainer.register_hooks([hooks.EvalHook(2, lambda: {"bbox": {"AP": next(scores)}}), best])
    trainer.train(0, 7)
    assert iterations == saved


def test_a_best_checkpoint_of_an_unknown_metric_is_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = Counting()
    trainer.register_hooks([hooks.BestCheckpointer(1, Checkpointer(Slope(), str(tmp_path)), "bbox/AP")])
    logging.getLogger("detectron2").propagate = True
    with caplog.at_level(logging.WARNING):
        trainer.train(0, 2)
    assert "Given val metric bbox/AP does not seem to be computed/stored" in caplog.text
    assert not list(tmp_path.glob("*.pth"))


def test_evaluation_results_are_flattened() -> None:
    trainer = Counting()
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"segm": {"AP": 1, "sub": {"x": torch.tensor(2.0)}}, "n": 3})])
    trainer.train(0, 2)
    assert trainer.storage.latest() == {"segm/AP": (1.0, 2), "segm/sub/x": (2.0, 2), "n": (3.0, 2)}


@pytest.mark.parametrize(
    ("results", "error", "match"),
    [({"a": {"b": "high"}}, ValueError, "Got 'a/b: high' instead"), ([1.0], AssertionError, "must return a dict")],
)
def test_evaluation_results_have_to_be_numbers(results: Any, error: type[Exception], match: str) -> None:
    trainer = Counting()
    trainer.register_hooks([hooks.EvalHook(1, lambda: results)])
    with pytest.raises(error, match=match):
        trainer.train(0, 2)


def test_there_is_no_evaluation_after_an_error() -> None:
    trainer = Counting(fails_at=1)
    trainer.register_hooks([hooks.EvalHook(0, lambda: pytest.fail("evaluated"))])
    with pytest.raises(RuntimeError, match="broken step"):
        trainer.train(0, 5)


def test_the_logged_rate_is_that_of_most_parameters() -> None:
    def sgd(*groups: tuple[int, float]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [{"params": [nn.Parameter(torch.zeros(1)) for _ in range(n)], "lr": lr} for n, lr in groups], lr=1.0
        )

    assert hooks.LRScheduler.get_best_param_group_id(sgd((1, 0.1), (3, 0.2), (2, 0.3))) == 1
    assert hooks.LRScheduler.get_best_param_group_id(sgd((1, 0.1), (1, 0.2), (1, 0.2))) == 1


def test_precise_bn_averages_over_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    data = [torch.randn(6, 2, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(3)]
    trainer = Counting()
    trainer.register_hooks([hooks.PreciseBN(0, model, data, 3)])
    trainer.train(0, 2)
    everything = torch.cat(data)
    torch.testing.assert_close(model[0].running_mean, everything.mean(dim=0))
    torch.testing.assert_close(model[0].running_var, everything.var(dim=0, unbiased=False))


def test_precise_bn_without_bn_does_nothing() -> None:
    hook = hooks.PreciseBN(1, nn.Linear(1, 1), [], 3)
    with EventStorage():
        hook.update_stats()


def test_profiles_are_written(tmp_path: Path) -> None:
    trainer = Counting()
    trainer.register_hooks(
        [hooks.TorchProfiler(lambda trainer: trainer.iter == 1, str(tmp_path)), hooks.TorchMemoryStats(period=1)]
    )
    trainer.train(0, 3)
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 1
