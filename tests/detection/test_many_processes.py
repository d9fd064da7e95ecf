"""Detection on one, two and four processes, and in parts: the same losses, weights and results."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from detection import training
from detection.custom_data import TEST_NAME, TRAIN_NAME
from detection.setup import setup
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.errors import InputError
from prompt_pretrain.pretrain import TrainingInterrupted
from tests.detection.tiny_runs import CLASS_NAMES, command, parsed
from tests.prompt_pretrain import processes

LABELS = "pictures_with_labels"
FIXED = [
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "100"),
    # The steps of AdamW do not shrink with the gradient, so they would show the noise of gradients that vanish.
    *("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.01", "SOLVER.WARMUP_ITERS", "0"),
]
CASES = {
    # With all that is drawn by chance: classes of the federated loss, regions.
    "published": [],
    # Without it, and with equally many regions in each image, means over a process' regions are means over all.
    "plain": [
        *("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "False", "MODEL.MASK_ON", "False", "MODEL.CENTERNET.NMS_TH_TRAIN", "1.0"),
        # Without an object left out by a crop: less than one per process counts as one, as published.
        *("INPUT.SCALE_RANGE", "(1.0,1.0)", "DATALOADER.ASPECT_RATIO_GROUPING", "False"),
    ],
    "mixed": [
        *("WITH_IMAGE_LABELS", "True", "DATALOADER.SAMPLER_TRAIN", "MultiDatasetSampler"),
        *("DATALOADER.MULTI_DATASET_GROUPING", "True", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"),
        *("DATALOADER.USE_DIFF_BS_SIZE", "True", "DATALOADER.DATASET_BS", "[1,2]", "DATALOADER.DATASET_ANN"),
        *("['box','image']", "DATALOADER.DATASET_INPUT_SIZE", "[32,32]", "DATALOADER.DATASET_RATIO", "[1,2]"),
    ],
}
CASES["stopped"] = CASES["published"]  # by a signal to one process, in the first step, and then resumed
RUNS = {4: [("published", 1), ("plain", 1)], 2: [("published", 2), ("mixed", 1), ("stopped", 2)]}
RUNS[1] = [("published", 4), ("plain", 1), ("mixed", 2)]


def write_files(folder: Path, case: str, parts: int) -> list[str]:
    """Arguments of a run in ``folder``; its files are written once, for all processes."""
    folder.mkdir(parents=True)
    settings = [*FIXED, "SOLVER.ACCUMULATION_STEPS", str(parts), *CASES[case]]
    return command(folder, *settings, test=case == "plain")


def train(case: str, arguments: list[str]) -> None:
    args = parsed(arguments)
    cfg = setup(args).clone()
    if case == "mixed":
        cfg.defrost()
        cfg.DATASETS.TRAIN = (TRAIN_NAME, LABELS)
        register_labels()
    try:
        training.run(cfg, args)
    finally:
        for name in {TRAIN_NAME, TEST_NAME, LABELS} & set(DatasetCatalog.list()):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def register_labels() -> None:
    """The pictures of the training set once more, with labels in place of boxes."""
    records = [
        {key: value for key, value in record.items() if key != "annotations"}
        | {"pos_category_ids": [number % len(CLASS_NAMES)]}
        for number, record in enumerate(DatasetCatalog.get(TRAIN_NAME))
    ]
    DatasetCatalog.register(LABELS, lambda: records)
    MetadataCatalog.get(LABELS).set(thing_classes=list(CLASS_NAMES))


def worker(rank: int, world: int, planned: list[tuple[Path, str, list[str]]]) -> None:
    from detectron2.utils import comm

    comm.create_local_process_group(world)
    kinds: list[str] = []
    forward = training.accumulate_gradients

    def record(model: torch.nn.Module, batches: list, **options: object) -> dict[str, torch.Tensor]:
        kinds.extend(batch[0].get("ann_type", "box") for batch in batches)
        return forward(model, batches, **options)

    training.accumulate_gradients = record
    for folder, case, arguments in planned:
        torch.manual_seed(0)  # of the initial weights
        kinds.clear()
        if case == "stopped":
            stop_in_first_step(rank, arguments)
            arguments = ["--resume", *arguments]
        train(case, arguments)
        (folder / f"kinds{rank}.json").write_text(json.dumps(kinds))


def stop_in_first_step(rank: int, arguments: list[str]) -> None:
    put_losses = training._Trainer._put_losses

    def signal_to_one(*args: object) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        put_losses(*args)

    training._Trainer._put_losses = signal_to_one
    with pytest.raises(TrainingInterrupted, match="stopped after iteration 0; run the same command with --resume"):
        train("stopped", arguments)
    training._Trainer._put_losses = put_losses


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("many")
    for world, cases in RUNS.items():
        folders = [(folder / f"{world}x{parts}" / case, case, parts) for case, parts in cases]
        planned = [(place, case, write_files(place, case, parts)) for place, case, parts in folders]
        processes.run_ranks(worker, world, world, planned)
    yield folder


def last_line(folder: Path) -> dict[str, float]:
    line = json.loads((folder / "run/metrics.json").read_text().splitlines()[-1])
    return {name: value for name, value in line.items() if "loss" in name}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "run/model_final.pth", weights_only=True)["model"]


def assert_same(one: Path, other: Path) -> None:
    assert last_line(one) == pytest.approx(last_line(other), rel=1e-5, abs=1e-6)
    others = weights(other)
    for name, value in weights(one).items():
        torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)


@pytest.mark.slow
def test_parts_are_processes_even_in_what_is_drawn(runs: Path) -> None:
    assert_same(runs / "4x1/published", runs / "2x2/published")
    assert_same(runs / "4x1/published", runs / "1x4/published")


@pytest.mark.slow
def test_four_processes_are_one_with_the_whole_batch(runs: Path) -> None:
    assert_same(runs / "4x1/plain", runs / "1x1/plain")
    # Six pictures on four processes; the merged files give what one process gives.
    results = [json.loads((runs / name / "plain/run/results.json").read_text())[TEST_NAME] for name in ("4x1", "1x1")]
    assert results[0]["bbox"] == pytest.approx(results[1]["bbox"], abs=1e-3, nan_ok=True)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_step_and_the_rest_is_exact(runs: Path) -> None:
    whole, stopped = (weights(runs / "2x2" / case) for case in ("published", "stopped"))
    assert whole.keys() == stopped.keys() and all(torch.equal(value, stopped[name]) for name, value in whole.items())


@pytest.mark.slow
def test_processes_with_data_sets_of_different_kinds(runs: Path) -> None:
    kinds = [json.loads((runs / "2x1/mixed" / f"kinds{rank}.json").read_text()) for rank in range(2)]
    assert any(first != second for first, second in zip(*kinds, strict=True)), kinds
    alone = json.loads((runs / "1x2/mixed/kinds0.json").read_text())
    assert alone == [kind for step in zip(*kinds, strict=True) for kind in step]
    assert_same(runs / "2x1/mixed", runs / "1x2/mixed")


def dying_worker(rank: int, folder: Path, arguments: list[str]) -> None:
    from detectron2.utils import comm

    comm.create_local_process_group(2)
    sys.stderr = (folder / f"stderr{rank}").open("w")
    evaluate = training.do_test

    def evaluate_and_die(cfg: CfgNode, model: torch.nn.Module, **options: object) -> object:
        if rank == 1:
            model.register_forward_hook(lambda *_: time.sleep(0.3) or os.kill(os.getpid(), signal.SIGKILL))
        return evaluate(cfg, model, **options)

    training.do_test = evaluate_and_die
    train("plain", arguments)


@pytest.mark.slow
def test_a_process_that_dies_in_the_last_evaluation_is_named(tmp_path: Path) -> None:
    arguments = command(tmp_path, *FIXED, *CASES["plain"])
    codes = processes.exit_codes(processes.start_ranks(dying_worker, 2, tmp_path, arguments))
    assert codes == [1, -signal.SIGKILL]
    said = (tmp_path / "stderr0").read_text()
    assert said.startswith(
        "error: process 1 of 2 is gone: it was at step 2, phase evaluation, batch 1; process 0 stops at step 2, phase "
    )
    assert "Run the same command with --resume to evaluate the trained model" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["SOLVER.ACCUMULATION_STEPS", "0"], "SOLVER.ACCUMULATION_STEPS is 0, expected 1 or more"),
        (["SOLVER.ACCUMULATION_STEPS", "3"], r"IMS_PER_BATCH is 4; .* times SOLVER.ACCUMULATION_STEPS, 1 \* 3"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "3"], "IMS_PER_BATCH 4 cannot be scaled from SOLVER.REFERENCE_WORLD_SIZE 3"),
        (
            ["SOLVER.ACCUMULATION_STEPS", "2", "MODEL.CENTERNET.MORE_POS", "True"],
            "MODEL.CENTERNET.MORE_POS chooses positives by predictions",
        ),
        (
            ["SOLVER.ACCUMULATION_STEPS", "2", "MODEL.TIMM.NORM", "BN"],
            "backbone.* normalises by the statistics of its batch",
        ),
    ],
)
def test_what_cannot_be_split_is_named(tmp_path: Path, settings: list[str], message: str) -> None:
    args = parsed(command(tmp_path, *FIXED, *settings, test=False))
    try:
        with pytest.raises(InputError, match=message):
            training.run(setup(args), args)
    finally:
        DatasetCatalog.remove(TRAIN_NAME)
        MetadataCatalog.remove(TRAIN_NAME)
