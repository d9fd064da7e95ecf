"""Training: exact resume of both stages, checkpoints, log files, and what stops it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import segmentation  # noqa: F401  (makes detectron2 importable)
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from prompt_pretrain.errors import InputError
from prompt_pretrain.pretrain import TrainingInterrupted
from segmentation import training
from segmentation.checkpoint import weights_to_load
from segmentation.task import main, setup
from segmentation.training import Trainer
from tests.segmentation.tiny_runs import CLASS_NAMES, TEST, command, parsed, registered

NO_TEST = ("DATASETS.TEST", "()")


@pytest.fixture(autouse=True)
def data_sets(tmp_path: Path) -> Iterator[None]:
    with registered(tmp_path / "data"):
        yield


def train(arguments: list[str]) -> Trainer:
    args = parsed(arguments)
    trainer = Trainer(setup(args))
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    return trainer


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    step = Trainer.run_step

    def step_or_die(self: Trainer) -> None:
        if self.iter == iteration:
            raise Killed
        step(self)

    monkeypatch.setattr(Trainer, "run_step", step_or_die)


@pytest.mark.parametrize("stage", [1, 2])
def test_interrupted_training_equals_an_uninterrupted_one(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train(command(tmp_path / "a", *NO_TEST, stage=stage))
    arguments = command(tmp_path / "b", *NO_TEST, stage=stage)
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            train(arguments)
    torch.manual_seed(99)  # a new process has other random states
    resumed = train(["--resume", *arguments])
    assert resumed.start_iter == 2
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    lines = [json.loads(line) for line in (tmp_path / "b/run/metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] == 3 and {"total_loss", "lr", "data_time"} <= lines[-1].keys()


def test_only_the_prompt_learns_in_stage_1(tmp_path: Path) -> None:
    before = build_model(setup(parsed(command(tmp_path, stage=1)))).state_dict()
    after = train(command(tmp_path, *NO_TEST, stage=1)).model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"clip_adapter.prompt_learner.prefix_prompt"}


def test_prompt_of_stage_1_is_used_and_frozen_in_stage_2(tmp_path: Path) -> None:
    learned = train(command(tmp_path, *NO_TEST, stage=1)).model.clip_adapter.prompt_learner.prefix_prompt
    file = tmp_path / "run/model_final.pth"
    prompt = ["MODEL.CLIP_ADAPTER.PROMPT_LEARNER", "learnable", "MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT", str(file)]
    (tmp_path / "2").mkdir()
    model = train(command(tmp_path / "2", *NO_TEST, *prompt, "SOLVER.MAX_ITER", "1")).model
    found = model.clip_adapter.prompt_learner.prefix_prompt
    assert torch.equal(found, learned) and not found.requires_grad

    # The weights of stage 2 hold the prompt, so evaluating them needs no file of stage 1.
    file.unlink()
    weights = ["MODEL.WEIGHTS", str(tmp_path / "2/run/model_final.pth")]
    cfg = setup(parsed(["--eval-only", *command(tmp_path / "2", *prompt, *weights)]))
    assert cfg.MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT == ""
    model = build_model(cfg)
    training.load_for_evaluation(cfg, model)
    assert torch.equal(model.clip_adapter.prompt_learner.prefix_prompt, learned)


def test_signal_saves_a_checkpoint_that_the_next_one_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = command(tmp_path, "SOLVER.CHECKPOINT_PERIOD", "1000000000", *NO_TEST, stage=1)
    with monkeypatch.context() as patch:
        patch.setattr(training.StopSignal, "agreed", lambda self: True)
        with pytest.raises(TrainingInterrupted, match="stopped after iteration 0; run the same command with --resume"):
            train(arguments)
    assert (tmp_path / "run/latest_0000000.pth").is_file()
    monkeypatch.setattr(training, "ROLLING_CHECKPOINT_SECONDS", 0.0)
    assert train(["--resume", *arguments]).start_iter == 1
    assert {path.name for path in (tmp_path / "run").glob("*.pth")} == {"model_final.pth"}


def test_command_trains_evaluates_goes_on_and_starts_anew(tmp_path: Path) -> None:
    arguments = command(tmp_path, stage=1)
    results = main(parsed(arguments))
    assert {"macc_top1", "acc_top1_sand", "acc_top1_w/o_base"} <= results.keys()
    run = tmp_path / "run"
    (run / "metrics.json").write_text(
        "".join(json.dumps({"iteration": iteration, "total_loss": 1.0}) + "\n" for iteration in range(4)) + '{"iter'
    )
    (run / "last_checkpoint").write_text("model_0000001.pth")
    assert main(parsed(["--resume", *arguments])) == pytest.approx(results)
    # Lines of iterations that are done again are gone.
    kept = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in kept] == [0, 1, 3, 4]  # the last one is the evaluation
    assert kept[2]["total_loss"] != 1.0 and "macc_top1" in kept[3]

    assert main(parsed(["--resume", *arguments])) == pytest.approx(results)  # all iterations are done
    weights = ["MODEL.WEIGHTS", str(run / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "other")]
    assert main(parsed(["--eval-only", *arguments, *weights])) == pytest.approx(results)
    assert main(parsed(["--eval-only", "--resume", *arguments])) == pytest.approx(results)
    saved = json.loads((tmp_path / "other/results.json").read_text())
    assert saved[f"{TEST}_classification"]["macc_top1"] == pytest.approx(results["macc_top1"])

    # The iteration in weights to start from does not count.
    main(parsed([*arguments, *weights, "SOLVER.MAX_ITER", "1", *NO_TEST]))
    final = torch.load(tmp_path / "other/model_final.pth", weights_only=True)
    assert final["iteration"] == 0
    assert final["class_names"] == final["seen_class_names"] == list(CLASS_NAMES[:3])


def test_evaluation_in_between_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = train(command(tmp_path / "a", stage=1))
    tested = train(command(tmp_path / "b", "TEST.EVAL_PERIOD", "1", stage=1))
    for (name, one), two in zip(plain.model.state_dict().items(), tested.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert tested.last_results == plain.last_results


def test_loss_that_is_not_finite_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = torch.zeros((), requires_grad=True) * float("nan")
    monkeypatch.setattr("segmentation.proposal_classifier.F.cross_entropy", lambda *_: nan)
    with pytest.raises(InputError, match=r"loss not finite at iteration 0: .*; lower SOLVER\.BASE_LR"):
        train(command(tmp_path, *NO_TEST, stage=1))


def test_nothing_to_learn_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no parameter of ProposalClipClassifier is trainable"):
        train(command(tmp_path, "MODEL.CLIP_ADAPTER.PROMPT_LEARNER", "predefined", stage=1))


def test_weights_of_a_backbone_are_not_for_a_model_without_one(tmp_path: Path) -> None:
    fixed = ["MODEL.CLIP_ADAPTER.PROMPT_LEARNER", "predefined", "DATALOADER.NUM_WORKERS", "0"]
    weights = ["MODEL.WEIGHTS", "detectron2://ImageNetPretrained/torchvision/R-50.pkl"]
    cfg = setup(parsed(["--eval-only", *command(tmp_path, *fixed, *weights, stage=1)]))
    model = build_model(cfg)
    assert weights_to_load(cfg, model) == ""
    training.load_for_evaluation(cfg, model)
    loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    evaluator = Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])
    assert inference_on_dataset(model, loader, evaluator)["macc_top5"] == 100


def test_missing_weights_are_an_error_before_the_config_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(tmp_path, "MODEL.WEIGHTS", str(tmp_path / "stage_1/model_final.pth"), stage=1)
    with pytest.raises(InputError, match="model_final.pth not found; it is the result of training with stage_1.yaml"):
        main(parsed(arguments))
    with pytest.raises(InputError, match="x.pth not found; give an existing file"):
        main(parsed([*arguments, "MODEL.WEIGHTS", "x.pth"]))
    clip = ["MODEL.WEIGHTS", "", "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME", "y.pt"]
    with pytest.raises(InputError, match=r"MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME: no CLIP file y\.pt"):
        main(parsed([*arguments, *clip]))
    assert "SOLVER" not in capsys.readouterr().out and not (tmp_path / "run" / "config.yaml").exists()
    weights = tmp_path / "half.pth"
    torch.save({"model": {"x": torch.zeros(1)}}, weights)
    with pytest.raises(InputError, match=r"half\.pth is .* of another model: .* holds x, the model clip_adapter\."):
        main(parsed(["--eval-only", *arguments, "MODEL.WEIGHTS", str(weights)]))
