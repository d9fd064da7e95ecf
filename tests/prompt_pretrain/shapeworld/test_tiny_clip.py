from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from prompt_pretrain.clip import load_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld import TINY_CLIP, TINY_CLIP_NAME, things
from prompt_pretrain.shapeworld.images import render_image
from prompt_pretrain.shapeworld.tiny_clip import (
    TinyClipTraining,
    _CaptionedPictures,
    _encode_short,
    _Learner,
    _patch_loss,
    known_tokens,
    train_tiny_clip,
)

SHORT = TinyClipTraining(steps=4, batch_size=6, warmup=2, checkpoint_steps=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("clip") / "whole.safetensors"
    train_tiny_clip(output, SHORT)
    return output


def test_a_killed_training_ends_with_the_same_bits(finished, tmp_path):
    def stop(done: int, loss: float, accuracy: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    output = tmp_path / "resumed.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_tiny_clip(output, SHORT, report=stop)
    assert not output.exists()
    steps = []
    train_tiny_clip(output, SHORT, report=lambda done, loss, accuracy: steps.append(done))
    assert steps == [3, 4]
    whole, resumed = load_file(finished), load_file(output)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list(tmp_path.glob("*.checkpoint.pt"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    output = tmp_path / "a.safetensors"

    def stop(done: int, loss: float, accuracy: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tiny_clip(output, SHORT, report=stop)
    with pytest.raises(InputError, match="belongs to a run with other settings; give those again or delete it"):
        train_tiny_clip(output, TinyClipTraining(steps=4, batch_size=6, warmup=2, checkpoint_steps=2, seed=1))
    output.with_name("a.safetensors.checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="is damaged .* delete it to start again"):
        train_tiny_clip(output, SHORT)


def test_settings_are_checked():
    with pytest.raises(InputError, match="tiny CLIP: steps must be at least 1, found 0"):
        TinyClipTraining(steps=0)


def test_short_rows_give_the_features_of_the_whole_context(finished):
    clip = load_clip(finished)
    tokens = clip.tokenizer(["a photo of a striped red star.", "plain star"])
    with torch.no_grad():
        short = _encode_short(clip.model, tokens[:, :12])
        torch.testing.assert_close(short, clip.model.encode_text(tokens), rtol=1e-4, atol=1e-5)
    assert finished.stat().st_size < 4_000_000


def test_a_step_lowers_the_loss_on_its_batch():
    training = TinyClipTraining(batch_size=8)
    tokenizer = open_clip.SimpleTokenizer()
    rows = known_tokens(tokenizer)
    batch = _CaptionedPictures(training, tokenizer, rows).batch(0)
    learner = _Learner(len(rows), seed=0)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        logits, patch_loss = learner(batch)
        losses.append((F.cross_entropy(logits, torch.arange(8)).item(), patch_loss.item()))
        optimizer.zero_grad()
        (F.cross_entropy(logits, torch.arange(8)) + patch_loss).backward()
        optimizer.step()
    assert losses[-1][0] < 0.8 * losses[0][0]
    assert losses[-1][1] < 0.8 * losses[0][1]


def test_patch_loss_of_a_perfect_and_of_a_blind_guess():
    tokenizer = open_clip.SimpleTokenizer()
    batch = _CaptionedPictures(TinyClipTraining(batch_size=2), tokenizer, known_tokens(tokenizer)).batch(0)
    blind = _patch_loss(torch.zeros(2, 64, 64 + 40), batch)
    expected = 3 * torch.tensor(2.0).log() + 2 * torch.tensor(10.0).log() + torch.tensor(20.0).log()
    torch.testing.assert_close(blind, expected)

    outputs = torch.zeros(2, 64, 104)
    for image in range(2):
        for patch in range(64):
            row, column = divmod(patch, 8)
            pixels = batch.coverage[image, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(-1)
            outputs[image, patch, :64] = torch.logit(pixels.clamp(1e-4, 1 - 1e-4))
        pattern, colour, shape = batch.attributes[image].tolist()
        outputs[image, :, [64 + pattern, 74 + colour, 84 + shape]] = 30.0
    assert _patch_loss(outputs, batch) < 0.1


def test_the_packaged_clip_recognises_base_and_novel_classes_far_above_chance():
    clip = load_clip(TINY_CLIP_NAME)
    assert TINY_CLIP.stat().st_size < 4_000_000
    mean, std = torch.tensor(clip.mean).view(3, 1, 1), torch.tensor(clip.std).view(3, 1, 1)
    for split in ("base", "novel"):
        classes = things(split)[:200]
        pictures = np.stack([render_image(thing, 0, split="val") for thing in classes])
        images = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - mean) / std
        tokens = clip.tokenizer([f"a photo of a {thing.name}." for thing in classes])[:, :20]
        with torch.no_grad():
            text = F.normalize(_encode_short(clip.model, tokens), dim=-1)
        scores = F.normalize(clip.encode_image(images), dim=-1) @ text.T
        accuracy = (scores.argmax(dim=1) == torch.arange(200)).float().mean()
        assert accuracy > 0.25, split  # chance is 0.005
