"""Segmentation on one, two and four processes, and in parts: the same losses, weights and results."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prompt_pretrain.errors import InputError
from prompt_pretrain.pretrain import TrainingInterrupted
from segmentation import training
from segmentation.setup import setup
from tests.prompt_pretrain import processes
from tests.segmentation.tiny_runs import TEST, command, parsed, registered

FIXED = [
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "100"),
    # The steps of AdamW do not shrink with the gradient, so they would show the noise of gradients that vanish.
    *("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.01", "MODEL.RESNETS.NORM", "FrozenBN"),
]
CASES = {
    "published": [],  # with dropout, and class weights whose sum differs between processes
    # Without both, means over a process are means over all.
    "plain": ["MODEL.MASK_FORMER.DROPOUT", "0.0", "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", "1.0"],
}
CASES["stopped"] = CASES["published"]  # by a signal to one process, in the first step, and then resumed
RUNS = {4: [("published", 1)], 2: [("published", 2), ("plain", 1), ("stopped", 2)]}
RUNS[1] = [("published", 4), ("plain", 1)]


def worker(rank: int, world: int, data: Path, planned: list[tuple[str, list[str]]]) -> None:
    from detectron2.utils import comm

    comm.create_local_process_group(world)
    with registered(data, write=False):
        for case, arguments in planned:
            torch.manual_seed(0)  # of the initial weights
            if case == "stopped":
                stop_in_first_step(rank, arguments)
                arguments = ["--resume", *arguments]
            train(arguments)


def train(arguments: list[str]) -> None:
    args = parsed(arguments)
    training.run(setup(args), args)


def stop_in_first_step(rank: int, arguments: list[str]) -> None:
    after_backward = training.Trainer.after_backward

    def signal_to_one(self: training.Trainer) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        after_backward(self)

    training.Trainer.after_backward = signal_to_one
    with pytest.raises(TrainingInterrupted, match="stopped after iteration 0; run the same command with --resume"):
        train(arguments)
    training.Trainer.after_backward = after_backward


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("many")
    with registered(folder / "data"):
        pass  # writes the pictures, once for all processes
    for world, cases in RUNS.items():
        planned = []
        for case, parts in cases:
            place = folder / f"{world}x{parts}" / case
            place.mkdir(parents=True)
            test = [] if case == "plain" else ["DATASETS.TEST", "()"]
            settings = [*FIXED, *CASES[case], *test, "SOLVER.ACCUMULATION_STEPS", str(parts)]
            planned.append((case, command(place, *settings)))
        processes.run_ranks(worker, world, world, folder / "data", planned)
    yield folder


def last_losses(folder: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (folder / "run/metrics.json").read_text().splitlines()]
    line = [line for line in lines if "total_loss" in line][-1]
    return {name: value for name, value in line.items() if "loss" in name}


def assert_same(one: Path, other: Path) -> None:
    assert last_losses(one) == pytest.approx(last_losses(other), rel=1e-5, abs=1e-6)
    first, second = (torch.load(x / "run/model_final.pth", weights_only=True)["model"] for x in (one, other))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)


@pytest.mark.slow
def test_parts_are_processes_even_in_what_is_drawn(runs: Path) -> None:
    assert_same(runs / "4x1/published", runs / "2x2/published")
    assert_same(runs / "4x1/published", runs / "1x4/published")


@pytest.mark.slow
def test_two_processes_are_one_with_the_whole_batch(runs: Path) -> None:
    assert_same(runs / "2x1/plain", runs / "1x1/plain")
    files = [runs / name / "plain/run/results.json" for name in ("2x1", "1x1")]
    results = [json.loads(file.read_text())[TEST]["sem_seg"] for file in files]
    assert results[0] == pytest.approx(results[1], abs=1e-3, nan_ok=True)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_step_and_the_rest_is_exact(runs: Path) -> None:
    files = [runs / "2x2" / case / "run/model_final.pth" for case in ("published", "stopped")]
    whole, stopped = (torch.load(file, weights_only=True)["model"] for file in files)
    assert whole.keys() == stopped.keys() and all(torch.equal(value, stopped[name]) for name, value in whole.items())


def test_what_cannot_be_split_is_named(tmp_path: Path) -> None:
    with registered(tmp_path / "data"):
        settings = ["DATASETS.TEST", "()", "SOLVER.ACCUMULATION_STEPS", "2", "MODEL.RESNETS.NORM", "BN"]
        args = parsed(command(tmp_path, *settings))
        with pytest.raises(InputError, match="backbone.* normalises by the statistics of its batch"):
            training.run(setup(args), args)
        args = parsed(command(tmp_path, "SOLVER.ACCUMULATION_STEPS", "3", "DATASETS.TEST", "()"))
        with pytest.raises(InputError, match=r"IMS_PER_BATCH is 2; .* times SOLVER.ACCUMULATION_STEPS, 1 \* 3"):
            training.run(setup(args), args)
