import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from prompt_pretrain import atomic_files
from prompt_pretrain.config import load_cfg
from prompt_pretrain.errors import InputError
from prompt_pretrain.metrics_log import read_metrics
from prompt_pretrain.pretrain import TrainingInterrupted
from prompt_pretrain.pretraining_setup import pretrain_prompt
from prompt_pretrain.prompt import SoftPrompt, load_prompt, save_prompt
from prompt_pretrain.run_folder import RunFolder
from tests.prompt_pretrain import processes, tiny_run


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return tiny_run.prepare(tmp_path_factory.mktemp("files"))


def run(files: Path, out: Path, *extra: str, **options):
    return pretrain_prompt(load_cfg(None, tiny_run.settings(files, "OUTPUT_DIR", str(out), *extra)), **options)


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run, with states every 3 steps."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run(files, out, "TRAIN.CHECKPOINT_STEPS", "3")
    return out


def prompts_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "prompt_learner").iterdir())}


# -- what a run leaves behind --------------------------------------------------------------------------------------


def test_a_run_leaves_the_published_files(finished):
    names = sorted(prompts_of(finished))
    assert names == ["checkpoint", "model-best.pth.tar", "model.pth.tar-1", "model.pth.tar-2", "model.pth.tar-3"]
    assert (finished / "prompt_learner" / "checkpoint").read_text() == "model.pth.tar-3\n"
    content = torch.load(finished / "prompt_learner" / "model.pth.tar-3", weights_only=True)
    assert content["epoch"] == 3 and content["state_dict"]["ctx"].shape == (4, 16)
    metadata = content["metadata"]
    wanted = {"dataset": "ImageFolder", "num_classes": 8, "num_sampled": 5, "margin": "log10", "selection": "held_out"}
    assert wanted.items() <= metadata.items()


def test_results_and_metrics_tell_best_and_last(finished):
    results = json.loads((finished / "results.json").read_text())
    accuracies = [row["accuracy"] for row in results["epochs"]]
    best = accuracies.index(max(accuracies)) + 1
    assert results["best"]["epoch"] == best and results["last"]["epoch"] == 3
    best_file = torch.load(results["best"]["prompt"], weights_only=True)
    assert best_file["epoch"] == best and best_file["val_result"] == max(accuracies)
    assert set(results["tests"]) == {"best", "last"}
    rows = read_metrics(finished / "metrics.jsonl", "train")
    assert [row["step"] for row in rows] == [3, 4, 6, 8, 9, 12]
    assert rows[0]["lr"] == 1e-5 and rows[-1]["lr"] == pytest.approx(0.0015)
    assert rows[0]["margin"] == pytest.approx(0.2430, abs=1e-4)  # log10(7 / 4)


def test_the_kept_configuration_repeats_the_run(files, finished, tmp_path):
    cfg = load_cfg(finished / "config.yaml", ["OUTPUT_DIR", str(tmp_path / "run"), "TRAIN.PRINT_FREQ", "1"])
    pretrain_prompt(cfg)
    assert prompts_of(tmp_path / "run") == prompts_of(finished)


def test_the_context_moves_and_starts_where_the_seed_says(finished):
    start = SoftPrompt.random(4, 16, seed=42).ctx
    first, last = (load_prompt(finished / "prompt_learner" / f"model.pth.tar-{epoch}").ctx for epoch in (1, 3))
    assert_close(first, start, rtol=0, atol=1e-3)  # the warm-up's learning rate is 1e-5
    assert (last - start).abs().max() > 1e-3


@pytest.mark.parametrize(
    "extra",
    [
        ("TRAINER.POMP.UPDATE_CLASS_NUM", "all"),
        ("TRAINER.POMP.NEGATIVES", "per_image"),
        ("TRAINER.POMP.NEG_SAMPLING_MODE", "frequency", "TRAINER.POMP.MARGIN", "ln"),
        ("TRAINER.POMP.NEG_SAMPLING_MODE", "similarity", "TRAINER.POMP.NEGATIVES", "per_image"),
        ("TRAINER.POMP.CSC", "True", "TRAINER.POMP.LOCAL_CORRECTION", "False"),
        ("TRAINER.POMP.CTX_INIT", "a_photo_of_a", "TRAINER.POMP.CLASS_TOKEN_POSITION", "middle"),
        ("FEATURE_CACHE.ENABLED", "False", "DATALOADER.K_TRANSFORMS", "2", "TRAINER.POMP.PREC", "bf16"),
        ("TRAINER.POMP.PREC", "fp16", "TRAINER.POMP.CLASS_TOKEN_POSITION", "front"),
        ("TEST.SELECTION", "last", "TEST.NO_TEST", "True", "MEMORY_BUDGET", "100MB", "TRAIN.CHECKPOINT_FREQ", "0"),
        ("TEST.SELECTION", "test", "TRAINER.POMP.EPT", "False"),
    ],
)
def test_every_option_trains(files, tmp_path, extra):
    report = run(files, tmp_path / "run", "OPTIM.MAX_EPOCH", "2", *extra)
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl", "epoch")]
    assert len(losses) == 2 and all(0 < loss < 4 for loss in losses)
    assert load_prompt(report.result.best_prompt).n_ctx == 4


def test_cached_and_online_features_train_alike_without_augmentation(files, tmp_path):
    plain = ("INPUT.TRANSFORMS", "['normalize']", "OPTIM.MAX_EPOCH", "2")
    found = [run(files, tmp_path / on, "FEATURE_CACHE.ENABLED", on, *plain) for on in ("True", "False")]
    cached, online = (load_prompt(report.result.last_prompt).ctx for report in found)
    moved = (online - SoftPrompt.random(4, 16, seed=42).ctx).abs().max()
    assert (cached - online).abs().max() < 0.02 * moved  # cached features are rounded to float16


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    tiny_run.prepare(tmp_path)
    (tmp_path / "images" / "train" / "oak" / "0.png").write_bytes(b"no image")
    for online in ("True", "False"):
        run(tmp_path, tmp_path / online, "FEATURE_CACHE.ENABLED", online, "OPTIM.MAX_EPOCH", "1")


# -- continuing ----------------------------------------------------------------------------------------------------


def kill_at_rename(number: int) -> None:
    """End this process between the writing of its ``number``-th file and the renaming of it."""
    real, count = os.replace, iter(range(1, 10_000))

    def replace(source, target):
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)

    atomic_files.os.replace = replace


def run_until_rename(files: Path, out: Path, number: int) -> None:
    kill_at_rename(number)
    run(files, out, "TRAIN.CHECKPOINT_STEPS", "3")


def run_for_a_while(files: Path, out: Path, seconds: float) -> None:
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    run(files, out, "TRAIN.CHECKPOINT_STEPS", "1")


@pytest.mark.slow
def test_killed_before_any_rename_and_run_again_gives_the_same_bytes(files, finished, tmp_path):
    expected, number = prompts_of(finished), 1
    while status := processes.run(run_until_rename, files, out := tmp_path / str(number), number):
        assert status == -signal.SIGKILL
        run(files, out, "TRAIN.CHECKPOINT_STEPS", "3")
        assert prompts_of(out) == expected
        steps = [row["step"] for row in read_metrics(out / "metrics.jsonl")]
        assert steps == [3, 4, 4, 6, 8, 8, 9, 12, 12]
        assert not [name for _, _, names in os.walk(out) for name in names if name.endswith(".tmp")]
        number += 2
    assert number > 15


@pytest.mark.slow
def test_killed_at_random_moments_again_and_again_gives_the_same_bytes(files, finished, tmp_path):
    generator = torch.Generator().manual_seed(5)
    statuses: list[int] = []
    while not statuses or statuses[-1] != 0:
        seconds = 0.05 * len(statuses) + 0.15 * torch.rand((), generator=generator).item()
        statuses.append(processes.run(run_for_a_while, files, tmp_path / "run", seconds))
    assert statuses.count(-signal.SIGKILL) == len(statuses) - 1 >= 3
    assert prompts_of(tmp_path / "run") == prompts_of(finished)


def test_a_signal_ends_the_step_and_the_same_command_goes_on(files, finished, tmp_path):
    def stop_at_6(done, total, text):
        if done == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterrupted, match=r"stopped in epoch 2 after step 6 of 12; .* run the same command"):
        run(files, tmp_path / "run", progress=stop_at_6)
    seen = []
    run(files, tmp_path / "run", progress=lambda done, total, text: seen.append(done))
    assert seen == [7, 8, 9, 10, 11, 12]
    assert prompts_of(tmp_path / "run") == prompts_of(finished)


def test_a_finished_run_is_not_trained_again_and_lost_prompts_come_back(files, finished, tmp_path):
    report = run(files, tmp_path / "elsewhere", "RESUME", str(finished))
    assert report.result.last_epoch == 3
    kept = prompts_of(tmp_path / "elsewhere")
    for name in ("model-best.pth.tar", "model.pth.tar-3", "checkpoint"):
        assert kept[name] == prompts_of(finished)[name]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEED", "7", "has SEED 42 but now it is 7"),
        ("TRAINER.POMP.UPDATE_CLASS_NUM", "4", "has TRAINER.POMP.UPDATE_CLASS_NUM 5 but now it is 4"),
        ("DATASET.NUM_SHOTS", "2", "has DATASET.NUM_SHOTS -1 but now it is 2"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", "4", r"has images per step \(DATALOADER.TRAIN_X.BATCH_SIZE .*\) 8 but now"),
    ],
)
def test_a_run_of_another_configuration_is_not_continued(files, finished, tmp_path, key, value, message):
    before = prompts_of(finished)
    with pytest.raises(InputError, match=message):
        run(files, finished, "TRAIN.CHECKPOINT_STEPS", "3", key, value)
    assert prompts_of(finished) == before
    run(files, tmp_path / "run", "OPTIM.MAX_EPOCH", "1", key, value)  # another folder is fine


def test_resume_off_starts_again_and_removes_the_old_prompts(files, tmp_path):
    run(files, tmp_path / "run", "SEED", "1")
    seen = []
    again = ("RESUME", "off", "OPTIM.MAX_EPOCH", "1")
    run(files, tmp_path / "run", *again, progress=lambda done, total, text: seen.append(done))
    assert seen == [1, 2, 3, 4]
    assert sorted(prompts_of(tmp_path / "run")) == ["checkpoint", "model-best.pth.tar", "model.pth.tar-1"]


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("TRAINER.POMP.UPDATE_CLASS_NUM", "9"), "UPDATE_CLASS_NUM is 9 but ImageFolder has 8 classes; set it to 3..8"),
        (("DATASET.ROOT", "/nowhere"), "/nowhere"),
        (("DATASET.NAME", ""), "DATASET.NAME is empty"),
        (("DATASET.HELD_OUT_SHOTS", "0"), "no validation images apart from its test images"),
        (("INPUT.SIZE", "(32, 32)"), r"INPUT.SIZE is \(32, 32\) but .* takes 16 pixels"),
        (("TRAINER.POMP.N_CTX", "74"), "class name '.*' needs .* tokens with 74 context vectors"),
        (("MODEL.INIT_WEIGHTS", "/nowhere.pth"), "no prompt file /nowhere.pth"),
        (("RESUME", "/nowhere"), "RESUME /nowhere holds no usable"),
        (("OUTPUT_DIR", "/proc/run"), "OUTPUT_DIR /proc/run cannot be written to"),
        (("DEVICE", "cuda"), "DEVICE is cuda but no CUDA device is available"),
    ],
)
def test_bad_input_is_named(files, tmp_path, extra, message):
    if extra[0] == "DEVICE" and torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(InputError, match=message):
        run(files, tmp_path / "run", *extra)


def test_initial_prompts_must_fit(files, tmp_path):
    wide = tmp_path / "wide.pth"
    save_prompt(wide, SoftPrompt.random(4, 32))
    with pytest.raises(InputError, match=r"no 'ctx' of shape \(4, 16\).*found \(4, 32\)"):
        run(files, tmp_path / "run", "MODEL.INIT_WEIGHTS", str(wide))
    front = tmp_path / "front.pth"
    save_prompt(front, SoftPrompt.random(4, 16, position="front"))
    with pytest.raises(InputError, match="name at 'front'; this run needs all, name at 'end'"):
        run(files, tmp_path / "run", "MODEL.INIT_WEIGHTS", str(front))


def test_an_initial_prompt_is_where_training_starts(files, tmp_path):
    save_prompt(tmp_path / "start.pth", SoftPrompt.random(4, 16, seed=9))
    still = ("OPTIM.LR", "0", "OPTIM.WARMUP_EPOCH", "0", "OPTIM.MAX_EPOCH", "1")
    report = run(files, tmp_path / "run", "MODEL.INIT_WEIGHTS", str(tmp_path / "start.pth"), *still)
    assert_close(load_prompt(report.result.last_prompt).ctx, SoftPrompt.random(4, 16, seed=9).ctx)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(files, tmp_path):
    wild = ("OPTIM.LR", "1e38", "OPTIM.WEIGHT_DECAY", "10.0", "TRAIN.CHECKPOINT_STEPS", "1")
    with pytest.raises(
        InputError, match=r"loss is not finite at step \d+ \(epoch 2, learning rate 1e\+38\); lower OPT"
    ):
        run(files, tmp_path / "run", *wild)
    assert torch.isfinite(load_prompt(tmp_path / "run" / "prompt_learner" / "model.pth.tar-1").ctx).all()
    assert not (tmp_path / "run" / "prompt_learner" / "model.pth.tar-2").exists()


def test_a_full_disk_leaves_the_files_that_were_there(files, tmp_path, monkeypatch):
    run(files, tmp_path / "run", "OPTIM.MAX_EPOCH", "1", "OUTPUT_DIR", str(tmp_path / "warm"))  # fills the cache
    real, count = os.fsync, iter(range(1000))

    def fsync(handle):
        if next(count) > 8:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(atomic_files.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        run(files, tmp_path / "run")
    monkeypatch.undo()
    for path in (tmp_path / "run" / "prompt_learner").glob("model*"):
        assert torch.isfinite(load_prompt(path).ctx).all()
    run(files, tmp_path / "run")


def test_two_runs_cannot_share_a_folder(files, tmp_path):
    held = RunFolder(tmp_path / "run")
    held.open()
    with pytest.raises(InputError, match="another training is running in .*; wait for it, or choose another OUTPUT_D"):
        run(files, tmp_path / "run", "OPTIM.MAX_EPOCH", "1")
    held.close()
    run(files, tmp_path / "run", "OPTIM.MAX_EPOCH", "1")
