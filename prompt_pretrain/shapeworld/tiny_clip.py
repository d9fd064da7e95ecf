"""The tiny CLIP: its architecture, and its training on pictures and captions of ShapeWorld's base classes.

A vision transformer learns very slowly from a caption alone, and there are only minutes. A second loss therefore
tells it about places: from each patch token a linear layer has to say which of the patch's pixels belong to the thing
and, where they do, the thing's pattern, colour and shape. The layer is thrown away after training.
"""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.clip_files import save_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld.captions import vocabulary_texts, write_caption
from prompt_pretrain.shapeworld.classes import COLOURS, PATTERNS, SHAPES, Thing, class_counts, things
from prompt_pretrain.shapeworld.images import plan_scene, render_scene

TINY_CLIP_CONFIG = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 96, "head_width": 32, "layers": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
_PATCH = 8
_ATTRIBUTES = (PATTERNS, COLOURS, SHAPES)
_NUM_BYTE_TOKENS = 512  # the tokenizer's first ids: every byte, inside a word and at its end
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TinyClipTraining:
    """How a tiny CLIP is trained: AdamW, contrastive loss plus patch loss.

    The learning rate rises over ``warmup`` steps, follows a cosine that would end after ``horizon`` steps, and falls
    from there in a straight line to zero over the last ``cooldown`` steps.

    Attributes:
        steps, batch_size: every step draws fresh pictures, so both together set how many are seen.
        lr, weight_decay: of AdamW.
        warmup, horizon, cooldown: in steps.
        seed: of weights, classes, pictures and captions.
        checkpoint_steps: a resumable checkpoint is written this often.
    """

    steps: int = 3800
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 100
    horizon: int = 6000
    cooldown: int = 400
    seed: int = 0
    checkpoint_steps: int = 200

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"tiny CLIP: {name} must be at least {least}, found {getattr(self, name)}")


def train_tiny_clip(
    output: str | os.PathLike,
    training: TinyClipTraining,
    *,
    report: Callable[[int, float, float], None] | None = None,
) -> None:
    """Train a CLIP and write it to ``output`` (float16 safetensors with the token rows it has seen).

    Everything drawn is a function of (seed, step), so a run that was killed goes on from ``<output>.checkpoint.pt``
    and, with as many threads, ends with the same bits. That file is removed at the end.

    Args:
        report: called after every step with the number of steps done, the loss and the training accuracy.
    Raises:
        InputError: a checkpoint of a run with other settings is in the way.
    """
    output = Path(output)
    checkpoint = output.with_name(output.name + ".checkpoint.pt")
    tokenizer = open_clip.SimpleTokenizer()
    rows = known_tokens(tokenizer)
    source = _CaptionedPictures(training, tokenizer, rows)
    model = _Learner(len(rows), training.seed)
    optimizer = _optimizer(model, training)
    start = _resume(checkpoint, training, model, optimizer)
    for step in range(start, training.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, training)
        loss, accuracy = _step(model, optimizer, source.batch(step))
        if report:
            report(step + 1, loss, accuracy)
        if (step + 1) % training.checkpoint_steps == 0 and step + 1 < training.steps:
            _save_checkpoint(checkpoint, training, model, optimizer, step + 1)
    save_clip(output, _full_model(model.clip, rows), TINY_CLIP_CONFIG, token_rows=rows, dtype=torch.float16)
    checkpoint.unlink(missing_ok=True)


def known_tokens(tokenizer: open_clip.SimpleTokenizer) -> list[int]:
    """Sorted ids of the tokens that a tiny CLIP knows: words of the captions and templates, bytes, start and end."""
    words = {token for text in vocabulary_texts() for token in tokenizer.encode(text)}
    return sorted(words | set(range(_NUM_BYTE_TOKENS)) | {tokenizer.sot_token_id, tokenizer.eot_token_id})


class _Batch(NamedTuple):
    images: Tensor  # (B, 3, S, S), normalised
    tokens: Tensor  # (B, L), rows of the compact table
    coverage: Tensor  # (B, S, S), share of each pixel that belongs to the thing
    attributes: Tensor  # (B, 3), numbers of pattern, colour and shape


class _CaptionedPictures:
    """Batches by step number, of classes drawn by their frequency."""

    def __init__(self, training: TinyClipTraining, tokenizer: open_clip.SimpleTokenizer, rows: Sequence[int]) -> None:
        self.training = training
        self.tokenizer = tokenizer
        self.compact = {token: row for row, token in enumerate(rows)}
        self.things = things("base")
        counts = np.array(class_counts(self.things, 50), np.float64)
        self.cumulative = np.cumsum(counts / counts.sum())
        self.size = TINY_CLIP_CONFIG["vision_cfg"]["image_size"]  # type: ignore[index]
        self.mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
        self.std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)

    def batch(self, step: int) -> _Batch:
        size = self.training.batch_size
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.training.seed, 7, step))))
        labels = np.minimum(np.searchsorted(self.cumulative, rng.random(size)), len(self.things) - 1)
        scenes = [
            plan_scene(self.things[label], step * size + row, split="clip", seed=self.training.seed)
            for row, label in enumerate(labels)
        ]
        pictures, masks = zip(*(render_scene(scene, self.size) for scene in scenes), strict=True)
        captions = [torch.tensor(self._tokens(write_caption(scene, rng))) for scene in scenes]
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        return _Batch(
            images=(images - self.mean) / self.std,
            tokens=nn.utils.rnn.pad_sequence(captions, batch_first=True),
            coverage=torch.from_numpy(np.stack(masks)),
            attributes=torch.tensor([_attribute_numbers(scene.thing) for scene in scenes]),
        )

    def _tokens(self, caption: str) -> list[int]:
        ids = [self.tokenizer.sot_token_id, *self.tokenizer.encode(caption), self.tokenizer.eot_token_id]
        return [self.compact[token] for token in ids]


def _attribute_numbers(thing: Thing) -> tuple[int, int, int]:
    return PATTERNS.index(thing.pattern), COLOURS.index(thing.colour), SHAPES.index(thing.shape)


class _Learner(nn.Module):
    """The CLIP in training, with a table of the known tokens alone, and the layer of the patch loss."""

    def __init__(self, num_tokens: int, seed: int) -> None:
        super().__init__()
        text = {**TINY_CLIP_CONFIG["text_cfg"], "vocab_size": num_tokens}  # type: ignore[dict-item]
        width = TINY_CLIP_CONFIG["vision_cfg"]["width"]  # type: ignore[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.clip = open_clip.CLIP(**{**TINY_CLIP_CONFIG, "text_cfg": text})
            self.patches = nn.Linear(width, _PATCH**2 + sum(map(len, _ATTRIBUTES)))
        self.clip.visual.output_tokens = True
        with torch.no_grad():
            self.clip.visual.positional_embedding.copy_(_grid_waves(width, self.clip.visual.grid_size[0]))

    def forward(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Scaled similarities (B, B) of pictures (rows) and captions, and the patch loss."""
        image_features, patch_tokens = self.clip.visual(batch.images)
        text_features = _encode_short(self.clip, batch.tokens)
        cosines = F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
        return self.clip.logit_scale.exp() * cosines, _patch_loss(self.patches(patch_tokens), batch)


def _grid_waves(width: int, side: int) -> Tensor:
    """Initial position embeddings (1 + side², width): zero for the class token, else waves of column and row."""
    frequency = 100.0 ** (-torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [position.reshape(-1, 1) * frequency for position in (column, row)]
    waves = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([waves.new_zeros(1, width), 0.3 * waves])


def _patch_loss(outputs: Tensor, batch: _Batch) -> Tensor:
    """Mean loss of what the patch tokens say, (B, P, outputs): their pixels' coverage, and attributes where covered."""
    coverage = F.pixel_unshuffle(batch.coverage[:, None], _PATCH).flatten(2).transpose(1, 2)  # (B, P, pixels)
    pixels, *guesses = outputs.split([_PATCH**2, *map(len, _ATTRIBUTES)], dim=-1)
    loss = 3 * F.binary_cross_entropy_with_logits(pixels, coverage)
    weights = coverage.mean(dim=-1)
    for column, guess in enumerate(guesses):
        target = batch.attributes[:, column, None].expand(weights.shape)
        losses = F.cross_entropy(guess.transpose(1, 2), target, reduction="none")
        loss = loss + (losses * weights).sum() / weights.sum()
    return loss


def _full_model(model: open_clip.CLIP, rows: Sequence[int]) -> open_clip.CLIP:
    full = open_clip.CLIP(**TINY_CLIP_CONFIG)
    state = model.state_dict()
    table = full.token_embedding.weight.detach().clone()
    table[list(rows)] = state["token_embedding.weight"]
    full.load_state_dict(state | {"token_embedding.weight": table})
    return full


def _optimizer(model: nn.Module, training: TinyClipTraining) -> torch.optim.AdamW:
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and "embedding" not in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim > 1 and "embedding" not in name)]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.lr, betas=(0.9, 0.98), eps=1e-6)


def _learning_rate(step: int, training: TinyClipTraining) -> float:
    if step < training.warmup:
        return training.lr * (step + 1) / training.warmup
    progress = min(1.0, (step - training.warmup) / max(1, training.horizon - training.warmup))
    cooled = min(1.0, (training.steps - step) / max(1, training.cooldown))
    return training.lr * 0.5 * (1 + math.cos(math.pi * progress)) * cooled


def _step(model: _Learner, optimizer: torch.optim.Optimizer, batch: _Batch) -> tuple[float, float]:
    """One update; the contrastive loss and the share of pictures whose own caption scores highest."""
    logits, patch_loss = model(batch)
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    optimizer.zero_grad(set_to_none=True)
    (loss + patch_loss).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.clip.logit_scale.clamp_(0, math.log(100))
    return loss.item(), (logits.argmax(dim=1) == target).float().mean().item()


def _encode_short(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Text features (B, D) of token rows shorter than the context; attention is causal, so this is exact."""
    length = tokens.shape[1]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    return hidden[torch.arange(len(tokens)), tokens.argmax(dim=1)] @ model.text_projection


def _save_checkpoint(
    path: Path, training: TinyClipTraining, model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    content = {
        "training": asdict(training),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with atomic_writer(path) as file:
        torch.save(content, file)


def _resume(path: Path, training: TinyClipTraining, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore model and optimiser from a checkpoint, if there is one; the number of steps already done."""
    if not path.is_file():
        return 0
    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise InputError(f"{path} is damaged ({type(error).__name__}); delete it to start again") from error
    if content["training"] != asdict(training):
        raise InputError(f"{path} belongs to a run with other settings; give those again or delete it")
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    _log.info("resuming from step %d of %d", content["step"], training.steps)
    return content["step"]
