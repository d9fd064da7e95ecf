"""The regional prompt: two learned contexts, before the class name and between it and its description."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from prompt_pretrain import distributed
from prompt_pretrain.baselines.learners import Classes, Learner
from prompt_pretrain.classification.randomness import make_generator
from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.prompt_tokens import tokenize_around_names
from prompt_pretrain.regional.entries import split_entry
from prompt_pretrain.text_encoder import TextEncoder

_INITIAL_STD = 0.02


class RegionalPrompt(Learner):
    """``[SOT] v1 … vn name w1 … wn description . [EOT]`` with v and w learned and shared by all classes.

    Class names are entries ``<name>_which_is_<description>``; the second context stands where "which is" was. State
    dict names are the published ones.

    Args:
        n_ctx: n, vectors in each context. words: initial words of the first and of the second context, n each (``_`` is
            a blank); "" draws from Normal(0, 0.02).
    Attributes:
        ctx1, ctx2: (n, W) float32.
    Raises:
        InputError: initial words of another number than ``n_ctx``.
    """

    trainer = "RPL"
    ctx1: nn.Parameter
    ctx2: nn.Parameter

    def __init__(self, clip: Clip, *, n_ctx: int = 1, words: Sequence[str] = ("", ""), seed: int = 0) -> None:
        super().__init__(clip)
        self.n_ctx = n_ctx
        self.encoder = TextEncoder(clip)
        generator = make_generator("rpl", seed)
        drawn = torch.randn(2, n_ctx, clip.text_width, generator=generator) * _INITIAL_STD
        self.ctx1, self.ctx2 = (
            nn.Parameter(_from_words(text, clip, n_ctx) if text else vectors)
            for text, vectors in zip(words, drawn, strict=True)
        )

    def prepare(self, class_names: Sequence[str]) -> Classes:
        names, descriptions = zip(*map(split_entry, class_names), strict=True)
        tokens = tokenize_around_names(
            names, descriptions, self.clip.tokenizer, self.n_ctx, context_length=self.clip.context_length
        )
        return Classes(len(class_names), tokens)

    def class_features(self, classes: Classes) -> Tensor:
        assert classes.tokens is not None
        shard = classes.count >= distributed.world_size() > 1
        ctx = torch.cat([self.ctx1, self.ctx2])
        return self.encoder(classes.tokens, ctx, memory_budget=self.memory_budget, shard=shard)


def load_regional_prompt(path: str | os.PathLike, clip: Clip) -> RegionalPrompt:
    """The prompt of a file that training wrote, or of a published one (``ctx1``, ``ctx2`` and a token buffer).

    Raises:
        InputError: no such file, one of other content, or one made for another CLIP.
    """
    from prompt_pretrain.baselines.files import load_learner, load_published, read_learner_file

    content = read_learner_file(path)
    metadata = content.get("metadata")
    if isinstance(metadata, dict) and "trainer" in metadata:
        if metadata["trainer"] != RegionalPrompt.trainer:
            raise InputError(f"{path} holds a {metadata['trainer']} model; give a prompt that TRAINER.NAME RPL trained")
        learner = load_learner(path, clip)
        assert isinstance(learner, RegionalPrompt)
        return learner
    found = content["state_dict"].get("ctx1", content["state_dict"].get("prompt_learner.ctx1"))
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise InputError(f"{Path(path)} holds no 'ctx1' of shape (n, W); give the checkpoint of a regional prompt")
    published = RegionalPrompt(clip, n_ctx=len(found))
    load_published(published, path)
    return published.to(clip.device)


def _from_words(text: str, clip: Clip, n_ctx: int) -> Tensor:
    """Token embeddings of ``n_ctx`` words."""
    vectors = SoftPrompt.from_words(text, clip).ctx.detach()
    if len(vectors) != n_ctx:
        raise InputError(
            f"the initial words {text!r} are {len(vectors)} but each context has {n_ctx} vectors; "
            "set TRAINER.RPL.N_CTX to the number of words"
        )
    return vectors
