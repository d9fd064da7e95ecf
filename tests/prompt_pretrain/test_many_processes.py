"""Pre-training on one, two and four processes, and in parts: the same losses and the same prompt."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prompt_pretrain.config import load_cfg
from prompt_pretrain.pretrain import PromptPretrainer, TrainingInterrupted
from prompt_pretrain.pretraining_setup import pretrain_prompt
from prompt_pretrain.prompt import load_prompt
from tests.prompt_pretrain import processes, tiny_run

pytestmark = pytest.mark.slow
IMAGES_PER_STEP = 12  # of 47: the last 11 do not make a step
# An image that cannot be read makes shares uneven; a batch larger than the data set is filled up.
CASES = {
    "sampled": ("OPTIM.MAX_EPOCH", "2"),
    "all_classes": ("TRAINER.POMP.UPDATE_CLASS_NUM", "all"),
    "per_image": ("TRAINER.POMP.NEGATIVES", "per_image", "TRAINER.POMP.NEG_SAMPLING_MODE", "similarity"),
    "online": ("FEATURE_CACHE.ENABLED", "False", "DATALOADER.K_TRANSFORMS", "2"),
    "few": ("DATASET.NUM_SHOTS", "1"),
    "per_rank": ("TRAINER.POMP.NEGATIVES", "per_rank"),
}


def pretrain(folder: Path, name: str, case: str, world: int, parts: int) -> None:
    size = IMAGES_PER_STEP // (world * parts)
    common = {"OPTIM.MAX_EPOCH": "1", "OPTIM.WARMUP_EPOCH": "0", "OPTIM.LR": "0.02", "TEST.SELECTION": "last"}
    common |= {"OUTPUT_DIR": str(folder / name / case), "DATALOADER.TRAIN_X.BATCH_SIZE": str(size)}
    common |= {"OPTIM.ACCUMULATION_STEPS": str(parts), "TEST.NO_TEST": "True", "TRAIN.PRINT_FREQ": "1"}
    common |= dict(zip(CASES[case][::2], CASES[case][1::2], strict=True))
    pretrain_prompt(load_cfg(None, tiny_run.settings(folder, *[text for pair in common.items() for text in pair])))


def worker(rank: int, folder: Path, world: int, parts: int) -> None:
    for case in CASES:
        pretrain(folder, f"{world}x{parts}", case, world, parts)
    take_step = PromptPretrainer._take_step

    def signal_to_one(self: PromptPretrainer, *args: Any) -> None:
        if rank == 1 and self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        take_step(self, *args)

    PromptPretrainer._take_step = signal_to_one
    with pytest.raises(TrainingInterrupted, match="stopped in epoch 2 after step 4 of 6"):
        pretrain(folder, f"{world}x{parts} stopped", "sampled", world, parts)
    PromptPretrainer._take_step = take_step
    pretrain(folder, f"{world}x{parts} stopped", "sampled", world, parts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tiny_run.prepare(tmp_path_factory.mktemp("many"))
    (folder / "images/train/kite/0.png").write_bytes(b"no picture")
    for case in CASES:
        pretrain(folder, "1x1", case, 1, 1)
        pretrain(folder, "1x4", case, 1, 4)
    for world, parts in ((4, 1), (2, 2)):
        processes.run_ranks(worker, world, folder, world, parts)
    yield folder


def outcome(folder: Path) -> tuple[torch.Tensor, list[float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "accuracy_among_k" in line]
    newest = sorted((folder / "prompt_learner").glob("model.pth.tar-*"))[-1]
    return load_prompt(newest).ctx.detach(), losses


@pytest.mark.parametrize("name", ["4x1", "2x2"])
def test_a_signal_to_one_process_stops_all_after_the_step_and_the_rest_is_exact(runs: Path, name: str) -> None:
    whole, stopped = outcome(runs / name / "sampled"), outcome(runs / f"{name} stopped" / "sampled")
    assert torch.equal(whole[0], stopped[0]) and whole[1] == stopped[1]


@pytest.mark.parametrize("case", CASES)
def test_processes_and_parts_change_nothing(runs: Path, case: str) -> None:
    # Lists per process depend on the number of processes, so the big batch is another run there.
    names = ["4x1", "2x2", "1x4"] + ([] if case == "per_rank" else ["1x1"])
    found = [outcome(runs / name / case) for name in names]
    assert len(found[0][1]) == {"sampled": 6, "few": 1, "online": 4}.get(case, 3)
    for ctx, losses in found[1:]:
        torch.testing.assert_close(ctx, found[0][0], rtol=0, atol=1e-5)
        assert losses == pytest.approx(found[0][1], abs=1e-5)
