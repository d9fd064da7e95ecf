"""Training: exact resume, checkpoints, log files, and what stops it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from detection import training
from detection.custom_data import TEST_NAME, TRAIN_NAME
from detection.task import setup
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from prompt_pretrain.errors import InputError
from prompt_pretrain.pretrain import TrainingInterrupted
from tests.detection.tiny_runs import CLASS_NAMES, command, parsed, write_embeddings


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    for name in {TRAIN_NAME, TEST_NAME} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def train(arguments: list[str]) -> torch.nn.Module:
    args = parsed(arguments)
    cfg = setup(args)
    torch.manual_seed(5)
    model = build_model(cfg)
    training.do_train(cfg, model, resume=args.resume)
    return model


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    step = training._Trainer.step

    def step_or_die(self: Any, stream: Any, storage: Any) -> None:
        if storage.iter == iteration:
            raise Killed
        step(self, stream, storage)

    monkeypatch.setattr(training._Trainer, "step", step_or_die)


def test_interrupted_training_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train(command(tmp_path / "a", test=False))
    arguments = command(tmp_path / "b", test=False)
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            train(arguments)
    torch.manual_seed(99)  # a new process has other random states
    resumed = train(["--resume", *arguments])
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    lines = [json.loads(line) for line in (tmp_path / "b/run/metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [3]
    assert {"total_loss", "lr", "time", "data_time", "loss_cls_stage0", "loss_mask"} <= lines[0].keys()


def test_signal_saves_a_checkpoint_that_the_next_one_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = command(tmp_path, "SOLVER.CHECKPOINT_PERIOD", "1000000000", test=False)
    with monkeypatch.context() as patch:
        patch.setattr(training.StopSignal, "agreed", lambda self: True)
        with pytest.raises(TrainingInterrupted, match="stopped after iteration 0; run the same command with --resume"):
            train(arguments)
    assert (tmp_path / "run/latest_0000000.pth").is_file()
    monkeypatch.setattr(training, "ROLLING_CHECKPOINT_SECONDS", 0.0)
    train(["--resume", *arguments])
    assert {path.name for path in (tmp_path / "run").glob("*.pth")} == {"model_final.pth"}


def test_going_on_and_starting_anew(tmp_path: Path) -> None:
    arguments = command(tmp_path, test=False)
    train(arguments)
    run = tmp_path / "run"
    lines = [json.dumps({"iteration": iteration, "total_loss": 1.0}) + "\n" for iteration in range(4)]
    (run / "metrics.json").write_text("".join(lines) + '{"iteration": 4, "tot')
    (run / "last_checkpoint").write_text("model_0000001.pth")
    train(["--resume", *arguments])
    # Lines of iterations that are done again are gone.
    kept = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in kept] == [0, 1, 3]
    assert kept[-1]["total_loss"] != 1.0

    before = (run / "metrics.json").read_text()
    train(["--resume", *arguments])  # all iterations are done: nothing happens
    assert (run / "metrics.json").read_text() == before

    # The iteration in weights to start from does not count.
    other = ["MODEL.WEIGHTS", str(run / "model_0000001.pth"), "OUTPUT_DIR", str(tmp_path / "other")]
    train(["--resume", *arguments, *other, "SOLVER.MAX_ITER", "1"])
    final = torch.load(tmp_path / "other/model_final.pth", weights_only=True)
    assert final["iteration"] == 0 and final["class_names"] == list(CLASS_NAMES)


def test_loss_that_is_not_finite_is_an_error() -> None:
    losses = {"loss_cls": torch.tensor(1.0), "loss_mask": torch.tensor(float("nan"))}
    with EventStorage(7) as storage, pytest.raises(InputError, match="iteration 7: loss_mask nan; lower SOLVER.BASE"):
        training._Trainer._put_losses(None, losses, storage)  # type: ignore[arg-type]


def test_evaluation_in_between_changes_nothing(tmp_path: Path) -> None:
    """Each test set gets a classifier of its own, and training goes on with the one it had."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = train(command(tmp_path / "a"))
    other = write_embeddings(tmp_path / "other.npy")
    reset = ["MODEL.RESET_CLS_TESTS", "True", "MODEL.TEST_CLASSIFIERS", f"('{other}',)"]
    augmented = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(32,)"]
    tested = train(command(tmp_path / "b", *reset, *augmented, "TEST.EVAL_PERIOD", "2"))
    assert tested.training
    assert plain.state_dict().keys() == tested.state_dict().keys()
    for (name, one), two in zip(plain.state_dict().items(), tested.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    results = json.loads((tmp_path / "b/run/results.json").read_text())
    assert set(results[TEST_NAME]) == {"bbox", "segm"}
    assert len(CLASS_NAMES) == tested.roi_heads.num_classes
