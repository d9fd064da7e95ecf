"""From class names to text features: hand-written templates or learned context vectors (ZSSeg, section 3.2)."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import load_prompt
from prompt_pretrain.prompt_tokens import PromptTokens, tokenize_pieces
from prompt_pretrain.safe_pickle import check_unfolded, read_torch_archive
from prompt_pretrain.templates import load_templates
from prompt_pretrain.text_encoder import TextEncoder, encode_templates

__all__ = ["LEARNERS", "PompPrompt", "PredefinedPrompts", "PromptLearner", "TwoSidedPrompt", "build_prompt_learner"]

logger = logging.getLogger(__name__)

# Values of PROMPT_LEARNER. "pomp_tuned" is a POMP prompt that stage 1 has tuned further.
LEARNERS = ("predefined", "imagenet", "vild", "learnable", "pomp", "pomp_tuned")
_TEMPLATE_SETS = {"imagenet": "imagenet80", "vild": "vild"}


class PromptLearner(Protocol):
    """What an adapter asks of a prompt learner."""

    def encode(self, clip: Clip, class_names: Sequence[str]) -> Tensor:
        """(K, D) unit-norm text features; differentiable where there is something to learn."""
        ...


class PredefinedPrompts(nn.Module):
    """Hand-written templates; the features of a class are averaged over them. Names are used verbatim."""

    def __init__(self, templates: Sequence[str]) -> None:
        super().__init__()
        for template in templates:
            if template.count("{}") != 1:
                raise InputError(f"MODEL.CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES: {template!r} must hold one {{}}")
        self.templates = tuple(templates)

    def encode(self, clip: Clip, class_names: Sequence[str]) -> Tensor:
        return encode_templates(clip, class_names, self.templates, clean=False)


class _SoftPrompt(nn.Module):
    """Context vectors round a class name: start, vectors, name, vectors, ".", end; every part tokenised by itself.

    The buffers ``*_signal`` are CLIP's embeddings of those tokens and of padding. They are part of released state
    dicts; the text encoder takes them from CLIP.
    """

    start_signal: Tensor
    dot_signal: Tensor
    end_signal: Tensor
    pad_signal: Tensor

    def __init__(self, width: int, num_before: int, num_after: int) -> None:
        super().__init__()
        self.num_before = num_before
        self.num_after = num_after
        for name in ("start_signal", "dot_signal", "end_signal", "pad_signal"):
            self.register_buffer(name, torch.zeros(1, width))
        self._prepared: tuple[tuple[str, ...], PromptTokens, TextEncoder] | None = None

    @torch.no_grad()
    def take_signals(self, clip: Clip) -> None:
        """Set the buffers to the token embeddings of ``clip``."""
        ids = [clip.tokenizer.sot_token_id, *clip.tokenizer.encode("."), clip.tokenizer.eot_token_id, 0]
        embeddings = clip.model.token_embedding.weight[ids].float()
        for buffer, row in zip(
            (self.start_signal, self.dot_signal, self.end_signal, self.pad_signal), embeddings, strict=True
        ):
            buffer.copy_(row)

    def context(self) -> Tensor:
        """(num_before + num_after, W) context vectors in their order."""
        raise NotImplementedError

    def encode(self, clip: Clip, class_names: Sequence[str]) -> Tensor:
        names = tuple(class_names)
        # Tokens and prefix tree of a vocabulary stay while it is in use.
        if self._prepared is None or self._prepared[0] != names or self._prepared[2].clip is not clip:
            prompts = tokenize_pieces(
                names, clip.tokenizer, self.num_before, self.num_after, context_length=clip.context_length
            )
            self._prepared = names, prompts, TextEncoder(clip)
        _, prompts, encoder = self._prepared
        return F.normalize(encoder(prompts, self.context().float()), dim=1)


class TwoSidedPrompt(_SoftPrompt):
    """ZSSeg's learnable prompt: vectors before and behind the class name, from a normal distribution (std 0.02)."""

    def __init__(self, width: int, shape: tuple[int, int]) -> None:
        super().__init__(width, *shape)
        for name, count in zip(("prefix_prompt", "suffix_prompt"), shape, strict=True):
            if count:
                self.register_parameter(name, nn.Parameter(torch.randn(count, width) * 0.02))

    def context(self) -> Tensor:
        return torch.cat([getattr(self, name) for name in ("prefix_prompt", "suffix_prompt") if hasattr(self, name)])


class PompPrompt(_SoftPrompt):
    """A POMP prompt: all vectors before the class name."""

    def __init__(self, width: int, n_ctx: int) -> None:
        super().__init__(width, n_ctx, 0)
        self.ctx = nn.Parameter(torch.randn(n_ctx, width) * 0.02)

    def context(self) -> Tensor:
        return self.ctx


def build_prompt_learner(cfg: Any, clip: Clip, *, stage: int, where: str = "MODEL.CLIP_ADAPTER") -> nn.Module:
    """The learner of a ``CLIP_ADAPTER`` node (or its ``REGION_CLIP_ADAPTER``), on the device of ``clip``.

    In stage 2 a learned prompt from ``PROMPT_CHECKPOINT`` is frozen. In stage 1, which learns prompts, "pomp" starts
    from it and "learnable" starts at random.

    Args:
        cfg: has PROMPT_LEARNER, PREDEFINED_PROMPT_TEMPLATES, PROMPT_DIM, PROMPT_SHAPE and PROMPT_CHECKPOINT.
        stage: 1 or 2.
        where: the node's name in error messages.
    Raises:
        InputError: unknown learner, widths that differ from CLIP's or from the file's, a missing or foreign file.
    """
    kind = cfg.PROMPT_LEARNER
    if kind not in LEARNERS:
        raise InputError(f"{where}.PROMPT_LEARNER is {kind!r}; expected one of {', '.join(LEARNERS)}")
    if kind == "predefined":
        return PredefinedPrompts(cfg.PREDEFINED_PROMPT_TEMPLATES)
    if kind in _TEMPLATE_SETS:
        return PredefinedPrompts(load_templates(_TEMPLATE_SETS[kind]))
    before, after = cfg.PROMPT_SHAPE
    if clip.text_width != cfg.PROMPT_DIM:
        raise InputError(
            f"{where}.PROMPT_DIM is {cfg.PROMPT_DIM}, but the text tower of {clip.clip_id} has width "
            f"{clip.text_width}; set it to that"
        )
    if before + (after if kind == "learnable" else 0) < 1:
        raise InputError(f"{where}.PROMPT_SHAPE is {(before, after)}; expected at least one context vector")
    learner = (
        TwoSidedPrompt(cfg.PROMPT_DIM, (before, after)) if kind == "learnable" else PompPrompt(clip.text_width, before)
    )
    learner.take_signals(clip)
    if cfg.PROMPT_CHECKPOINT and not (stage == 1 and kind == "learnable"):
        _load(learner, cfg.PROMPT_CHECKPOINT, f"{where}.PROMPT_CHECKPOINT", released=kind == "pomp")
        learner.requires_grad_(stage == 1)
    return learner.to(clip.device)


def is_trainable(learner: nn.Module) -> bool:
    """Whether features of this learner change in training, so that they must not be kept."""
    return any(parameter.requires_grad for parameter in learner.parameters())


@torch.no_grad()
def _load(learner: _SoftPrompt, path: str, key: str, *, released: bool) -> None:
    """Context vectors from a pre-training checkpoint (``released``) or from a stage-1 checkpoint."""
    if released and isinstance(learner, PompPrompt):
        try:
            loaded = load_prompt(path, width=learner.ctx.shape[1], n_ctx=learner.num_before)
        except InputError as error:
            raise InputError(f"{key}: {error}") from error
        if loaded.class_specific or loaded.position != "end":
            kind = "one context per class" if loaded.class_specific else f"the class name in its {loaded.position}"
            raise InputError(f"{key}: {path} has {kind}; give a prompt with one context, before all class names")
        learner.ctx.copy_(loaded.ctx)
        return
    found = _stage_1_entries(Path(path), key)
    for name, parameter in learner.named_parameters():
        if name not in found:
            raise InputError(
                f"{key}: {path} has no prompt_learner.{name}, only {', '.join(sorted(found)) or 'no prompt at all'}; "
                "give a checkpoint of stage 1 with this PROMPT_LEARNER"
            )
        if found[name].shape != parameter.shape:
            raise InputError(
                f"{key}: {name} in {path} has shape {tuple(found[name].shape)}, "
                f"PROMPT_SHAPE and PROMPT_DIM ask for {tuple(parameter.shape)}; set them to those of the file"
            )
        parameter.copy_(found[name])
    logger.info("prompt from %s", path)


def _stage_1_entries(path: Path, key: str) -> dict[str, Tensor]:
    """Entries of the prompt learner in a stage-1 checkpoint, by their names in the learner."""
    if not path.is_file():
        raise InputError(
            f"{key}: no file {path}; train stage 1 first (a config named "
            "zero_shot_proposal_classification_learn_prompt…) or give its model_final.pth"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged, or a checkpoint with objects beside the weights
        content = read_torch_archive(path)
    check_unfolded(content, path)
    content = content.get("model", content) if isinstance(content, dict) else {}
    entries = content.items() if isinstance(content, dict) else ()
    named = {name: value for name, value in entries if isinstance(name, str) and "prompt_learner" in name}
    wrong = next((name for name, value in named.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        raise InputError(f"{key}: {wrong[:100]!r} of {path} is no tensor; give the model_final.pth of stage 1")
    return {re.sub(r"^.*prompt_learner\.", "", name): value for name, value in named.items()}
