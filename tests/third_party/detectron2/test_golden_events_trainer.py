"""Event storage, writers and the training loop, as recorded."""

import ast
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import Tensor, nn

from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter
from tests.golden_files import Golden


class Lines(logging.Handler):
    """Collects messages of a logger; its parents may not propagate."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def numbers(pattern: str, text: str) -> list[float]:
    return [float(number) for number in re.search(pattern, text).groups()]


def close(expected: Any, golden: Golden) -> Any:
    tolerance = float(golden.meta["tolerance"].split(";")[0])
    return pytest.approx(expected, rel=tolerance, abs=tolerance)


def put(storage: EventStorage, values: dict[str, float], extra: str) -> None:
    """What the recipe puts at one iteration."""
    iteration = storage.iter
    storage.put_scalars(**values)
    storage.put_scalar("lr", numbers(r"lr = ([\d.]+)\*\(iter\+1\)", extra)[0] * (iteration + 1), smoothing_hint=False)
    parts = re.search(r"total_loss = ([\w+]+)", extra).group(1).split("+")
    storage.put_scalar("total_loss", sum(values[name] for name in parts))
    if iteration % numbers(r"sometimes = iter when iter%(\d+)==0", extra)[0] == 0:
        storage.put_scalar("sometimes", iteration)
    scope, name, divisor = re.search(r"name_scope\('(\w+)'\): (\w+) = iter/(\d+)", extra).groups()
    with storage.name_scope(scope):
        storage.put_scalar(name, iteration / float(divisor))


def check_storage(golden: Golden, folder: Path) -> None:
    meta, sequence = golden.meta, golden.meta["sequence"]
    max_iter, window = map(int, numbers(r"max_iter=(\d+), window_size=(\d+)", sequence["writers"]))
    printer = CommonMetricPrinter(max_iter=max_iter, window_size=window)
    json_writer = JSONWriter(str(folder / "metrics.json"), window_size=window)
    printed = Lines()
    logger = logging.getLogger("detectron2.utils.events")
    logger.addHandler(printed)
    logger.setLevel(logging.INFO)
    try:
        with EventStorage(sequence["start_iter"]) as storage:
            for iteration, values in enumerate(sequence["puts"], start=sequence["first_iter"]):
                storage.iter = iteration
                put(storage, values, sequence["extra"])
                if iteration in sequence["writes_after_iterations"]:
                    printer.write()
                    json_writer.write()
    finally:
        logger.removeHandler(printed)
        json_writer.close()

    smoothed_key = next(key for key in meta if key.startswith("latest_with_hint_window"))
    smoothed = storage.latest_with_smoothing_hint(int(smoothed_key.removeprefix("latest_with_hint_window")))
    for found, expected in ((smoothed, meta[smoothed_key]), (storage.latest(), meta["latest"])):
        assert found.keys() == expected.keys()
        for name, (value, iteration) in expected.items():
            assert found[name] == (close(value, golden), iteration), name
    history = storage.history("loss_cls")
    assert storage.history("time").global_avg() == close(meta["history_time_global_avg"], golden)
    assert history.median(20) == close(meta["median20"], golden)
    assert history.avg(20) == close(meta["avg20"], golden)

    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert [list(line) for line in lines] == [sorted(line) for line in meta["metrics_json_lines"]]
    for line, expected in zip(lines, meta["metrics_json_lines"], strict=True):
        assert line == close(expected, golden)
    assert [re.sub(r"max_mem: \d+M", "", line) for line in printed.lines] == meta["printer_lines"]


class TwoLosses(nn.Module):
    """The recipe's model: loss_a = mean(y^2), loss_b = 0.5 * mean|y|."""

    def __init__(self, in_features: int, out_features: int, factor: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        nn.init.ones_(self.linear.weight)
        self.factor = factor

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.linear(x)
        return {"loss_a": y.square().mean(), "loss_b": self.factor * y.abs().mean()}


class Recorder(HookBase):
    """Notes each call and the iteration."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []

    def before_train(self) -> None:
        self.calls.append(["before_train", self.trainer.iter])

    def after_train(self) -> None:
        self.calls.append(["after_train", self.trainer.iter])

    def before_step(self) -> None:
        self.calls.append(["before_step", self.trainer.iter])

    def after_backward(self) -> None:
        self.calls.append(["after_backward", self.trainer.iter])

    def after_step(self) -> None:
        self.calls.append(["after_step", self.trainer.iter])


def check_loop(recorded: dict[str, Any], golden: Golden) -> None:
    model = TwoLosses(
        *map(int, numbers(r"Linear\((\d+),(\d+)", recorded["model"])), *numbers(r"loss_b = ([\d.]+)", recorded["model"])
    )
    expression, first, last = re.fullmatch(r"(.*) for i = (\d+)\.\.(\d+)", recorded["data"]).groups()
    rows = [ast.literal_eval(expression.replace("i+1", str(i + 1))) for i in range(int(first), int(last) + 1)]
    lr = numbers(r"SGD lr ([\d.]+)", recorded["optimizer"])[0]
    values, milestone, updates = re.search(
        r"MultiStep (\[.*\]) milestone (\d+) of (\d+)", recorded["optimizer"]
    ).groups()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    trainer = SimpleTrainer(model, [torch.tensor(row, dtype=torch.float32) for row in rows], optimizer)

    # Only the first and the last result are recorded, and at which iterations the evaluation ran.
    (result_name, (result, _)) = next(item for item in recorded["storage_latest"].items() if "/" in item[0])
    task, metric = result_name.split("/")
    eval_iters: list[int] = []

    def evaluate() -> dict[str, dict[str, float]]:
        eval_iters.append(trainer.iter)
        return {task: {metric: result}}

    recorder = Recorder()
    schedule = MultiStepParamScheduler(ast.literal_eval(values), int(updates), [int(milestone)])
    eval_hook = hooks.EvalHook(recorded["eval_iters"][0] + 1, evaluate)
    trainer.register_hooks([recorder, hooks.LRScheduler(optimizer, schedule), eval_hook])
    trainer.train(0, len(rows))

    assert recorder.calls == recorded["hook_calls"]
    assert eval_iters == recorded["eval_iters"]
    assert trainer.iter == recorded["final_iter"]
    assert model.linear.weight.tolist() == [close(row, golden) for row in recorded["final_weight"]]
    assert optimizer.param_groups[0]["lr"] == close(recorded["final_lr"], golden)
    state = trainer.state_dict()
    assert sorted(state) == recorded["state_keys"]
    assert state["hooks"] == recorded["hook_states"]
    latest = trainer.storage.latest()
    for name, (value, iteration) in recorded["storage_latest"].items():
        assert latest[name] == (close(value, golden), iteration), name


@pytest.mark.golden("d2_events_trainer")
def test_events_and_training_loop_match_recorded_ones(golden: Golden, tmp_path: Path) -> None:
    check_storage(golden, tmp_path)
    check_loop(golden.meta["train_loop"], golden)
