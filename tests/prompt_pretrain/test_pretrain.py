from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from prompt_pretrain.class_sampling import ClassSampler
from prompt_pretrain.classification.samplers import train_batches
from prompt_pretrain.clip import Clip, clip_from_config
from prompt_pretrain.config import load_cfg
from prompt_pretrain.errors import InputError
from prompt_pretrain.feature_source import CachedFeatures
from prompt_pretrain.optimisation import learning_rate_from_cfg
from prompt_pretrain.pretrain import PromptPretrainer
from prompt_pretrain.prompt import SoftPrompt, load_prompt
from prompt_pretrain.prompt_loss import PromptLoss
from prompt_pretrain.prompt_tokens import tokenize_prompts
from prompt_pretrain.run_folder import RunFolder
from prompt_pretrain.text_encoder import TextEncoder
from tests.prompt_pretrain import tiny_run

NUM_IMAGES, VIEWS = 13, 2
LABELS = np.arange(NUM_IMAGES) % 8


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clip_from_config(tiny_run.CLIP_CONFIG)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NUM_IMAGES, VIEWS, 16)).astype(np.float16)


def make_pretrainer(clip, features, folder: Path, *overrides: str, accuracy=None, num_sampled=None):
    fixed = ["DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.MAX_EPOCH", "3", "TRAIN.TENSORBOARD", "False"]
    cfg = load_cfg(None, [*fixed, "TRAIN.CHECKPOINT_FREQ", "1", *overrides])
    sampler = None if num_sampled is None else ClassSampler(8, num_sampled, seed=cfg.SEED)
    prompts = tokenize_prompts(tiny_run.CLASS_NAMES, clip.tokenizer, 4)
    return PromptPretrainer(
        cfg,
        SoftPrompt.random(4, 16, seed=cfg.SEED),
        PromptLoss(TextEncoder(clip), prompts, sampler, logit_scale=10.0),
        CachedFeatures(
            features, LABELS[: len(features)], np.ones(len(features), bool), views=1, device=torch.device("cpu")
        ),
        RunFolder(folder),
        accuracy=accuracy,
        settings={},
        autocast=nullcontext,
    )


def test_the_loop_matches_one_written_out(clip, features, tmp_path):
    pretrainer = make_pretrainer(clip, features, tmp_path, num_sampled=5)
    encoder, sampler, optim = TextEncoder(clip, "plain"), ClassSampler(8, 5, seed=42), pretrainer.cfg.OPTIM
    prompts = tokenize_prompts(tiny_run.CLASS_NAMES, clip.tokenizer, 4)
    ctx = SoftPrompt.random(4, 16, seed=42).ctx.detach()
    velocity, step = torch.zeros_like(ctx), 0
    for epoch in range(3):
        for images in train_batches(NUM_IMAGES, 4, seed=42, epoch=epoch):
            ctx.requires_grad_()
            weights = F.normalize(encoder(prompts, ctx), dim=1)
            x = F.normalize(torch.from_numpy(features[images, epoch % VIEWS]).float(), dim=1)
            y, negatives = torch.from_numpy(LABELS[images]), sampler.draw(step).ids
            hits = negatives[None] == y[:, None]
            margin = np.log10(7) - torch.log10((~hits).sum(1, keepdim=True).float())
            logits = 10 * x @ weights.T
            negative_logits = torch.where(hits, -torch.inf, logits[:, negatives] + margin)
            all_logits = torch.cat([logits.gather(1, y[:, None]), negative_logits], dim=1)
            (gradient,) = torch.autograd.grad((all_logits.logsumexp(1) - all_logits[:, 0]).mean(), ctx)
            velocity = 0.9 * velocity + gradient + 5e-4 * ctx.detach()
            ctx = ctx.detach() - learning_rate_from_cfg(epoch, optim) * velocity
            step += 1
    result = pretrainer.train()
    assert step == 9 == pretrainer.step
    assert_close(load_prompt(result.last_prompt).ctx.detach(), ctx, rtol=1e-4, atol=1e-6)


def test_training_finds_a_prompt_that_fits_the_images(clip, tmp_path):
    prompts = tokenize_prompts(tiny_run.CLASS_NAMES, clip.tokenizer, 4)
    wanted = 20 * SoftPrompt.random(4, 16, seed=7).ctx.detach()
    images = TextEncoder(clip)(prompts, wanted)[LABELS]  # what each class looks like with some other prompt
    settings = ("OPTIM.LR", "0.001", "OPTIM.MAX_EPOCH", "30", "OPTIM.WEIGHT_DECAY", "0")
    pretrainer = make_pretrainer(clip, images[:, None].numpy(), tmp_path, *settings)
    pretrainer.train()
    losses = [row["loss"] for row in pretrainer.history]
    assert losses[-1] < losses[0] - 0.4


def test_the_first_of_equally_good_epochs_is_kept(clip, features, tmp_path):
    accuracies = iter([10.0, 30.0, 30.0])
    pretrainer = make_pretrainer(clip, features, tmp_path, accuracy=lambda prompt: next(accuracies))
    result = pretrainer.train()
    assert (result.best_epoch, result.best_accuracy, result.last_epoch, result.last_accuracy) == (2, 30.0, 3, 30.0)
    assert_close(load_prompt(result.best_prompt).ctx, load_prompt(pretrainer.run.epoch_prompt(2)).ctx)


def test_without_an_evaluation_the_last_epoch_is_the_best(clip, features, tmp_path):
    result = make_pretrainer(clip, features, tmp_path).train()
    assert (result.best_epoch, result.best_accuracy) == (3, None)
    assert result.best_prompt.exists() and result.last_prompt.name == "model.pth.tar-3"


@pytest.mark.parametrize(("every", "kept"), [("0", {3}), ("1", {1, 2, 3}), ("2", {2, 3})])
def test_epochs_are_kept_as_often_as_asked(clip, features, tmp_path, every, kept):
    run = make_pretrainer(clip, features, tmp_path, "TRAIN.CHECKPOINT_FREQ", every).train().last_prompt.parent
    assert {int(path.suffix.removeprefix(".tar-")) for path in run.glob("model.pth.tar-*")} == kept


def test_every_state_on_the_way_leads_to_the_same_prompt(clip, features, tmp_path):
    every_step = ("TRAIN.CHECKPOINT_STEPS", "1")
    first = make_pretrainer(clip, features, tmp_path / "a", *every_step, num_sampled=4)
    states = []
    save = first.run.states.save
    first.run.states.save = lambda state, step: states.append(torch.load(save(state, step), weights_only=True))
    expected = load_prompt(first.train().last_prompt).ctx
    assert [state["step"] for state in states] == list(range(1, 10))
    for state in states:
        again = make_pretrainer(clip, features, tmp_path / str(state["step"]), *every_step, num_sampled=4)
        assert torch.equal(load_prompt(again.train(state).last_prompt).ctx, expected)
        assert again.history == first.history


def test_no_training_image_is_an_error(clip, features, tmp_path):
    with pytest.raises(InputError, match="there is no training image; check DATASET.ROOT"):
        make_pretrainer(clip, features[:0], tmp_path)
