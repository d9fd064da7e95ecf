"""What the baselines learn, and how it turns images and class names into logits.

State-dict names are the published ones of CoOp, CoCoOp, VPT and MaPLe, so their checkpoints load.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_pretrain import distributed
from prompt_pretrain.baselines.vision_prompts import PromptedImageTower
from prompt_pretrain.classification.randomness import make_generator
from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.local_contrast import full_contrast_logits
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.prompt_tokens import PromptTokens, tokenize_prompts
from prompt_pretrain.templates import load_templates
from prompt_pretrain.text_encoder import TextEncoder, encode_templates

logger = logging.getLogger(__name__)
_INITIAL_STD = 0.02


@dataclass(frozen=True, eq=False)
class Classes:
    """A vocabulary made ready for a learner, once.

    Attributes:
        count: N.
        tokens: prompts of the classes, for learners that run the text tower in every step.
        features: (N, D) frozen text features, unit-norm; (L, N, D) for L hand-written templates.
    """

    count: int
    tokens: PromptTokens | None = None
    features: Tensor | None = None


class Learner(nn.Module):
    """Base of all learners; the CLIP is frozen and no part of the state dict.

    Attributes:
        trainer: its TRAINER.NAME.
        takes_images: its input is images (B, 3, S, S), not features (B, D) of the frozen image tower.
        any_classes: it serves vocabularies that it was not trained on.
        batch: images that :meth:`logits` can be given at a time.
    """

    trainer: ClassVar[str]
    takes_images: ClassVar[bool] = False
    any_classes: ClassVar[bool] = True

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.memory_budget: int | None = None  # bytes of saved activations, see TextEncoder

    def prepare(self, class_names: Sequence[str]) -> Classes:
        """Tokens or frozen features of a vocabulary.

        Raises:
            InputError: a name that is empty or too long.
        """
        raise NotImplementedError

    def class_features(self, classes: Classes) -> Tensor | None:
        """(N, D) features that all images share, differentiable; None where each image has its own or none exist."""
        raise NotImplementedError

    def logits(self, inputs: Tensor, classes: Classes, class_features: Tensor | None) -> Tensor:
        """(B, N) float32 logits.

        Args:
            inputs: images or image features, see ``takes_images``.
            class_features: what :meth:`class_features` gave.
        """
        assert class_features is not None
        return full_contrast_logits(self.image_features(inputs), class_features, self.clip.logit_scale)

    def image_features(self, inputs: Tensor) -> Tensor:
        """(B, D) features, not normalised."""
        return inputs

    def training_step(self, inputs: Tensor, classes: Classes) -> tuple[Tensor, Tensor | None]:
        """(B, N) logits, and a term that joins their cross entropy, scalar, or None."""
        return self.logits(inputs, classes, self.class_features(classes)), None


class _TextLearner(Learner):
    """Shared by the learners that run the text tower."""

    def __init__(self, clip: Clip, n_ctx: int, words: str) -> None:
        super().__init__(clip)
        self.n_ctx, self.words = n_ctx, words.replace("_", " ").strip()
        self.encoder = TextEncoder(clip)

    def prepare(self, class_names: Sequence[str]) -> Classes:
        tokens = tokenize_prompts(
            class_names,
            self.clip.tokenizer,
            self.n_ctx,
            context_length=self.clip.context_length,
            ctx_words=self.words,
        )
        return Classes(len(class_names), tokens)

    def encode(self, classes: Classes, ctx: Tensor, deep_ctx: Sequence[Tensor] = (), *, shared: bool = True) -> Tensor:
        """(N, D) raw features of the classes behind ``ctx``; ``shared``: all processes encode the same contexts."""
        assert classes.tokens is not None
        shard = shared and classes.count >= distributed.world_size() > 1
        return self.encoder(classes.tokens, ctx, deep_ctx=deep_ctx, memory_budget=self.memory_budget, shard=shard)


class MetaNet(nn.Module):
    """Two linear layers from a unit-norm image feature (…, D) to a shift of the context vectors (…, W)."""

    def __init__(self, image_width: int, ctx_width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear1 = _linear(image_width, hidden, generator)
        self.linear2 = _linear(hidden, ctx_width, generator)

    def forward(self, image_features: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(image_features)))


class CoCoOp(_TextLearner):
    """Context vectors that each image shifts (Zhou et al., arXiv 2203.05557).

    Every image has class features of its own: one run of the text tower per image, in which all classes share the
    shifted prefix.
    """

    trainer = "CoCoOp"
    prompt_learner: Any  # an nn.Module that only groups parameters under the published names

    def __init__(self, clip: Clip, *, n_ctx: int = 4, words: str = "a photo of a", seed: int = 0) -> None:
        words = words.replace("_", " ").strip()
        super().__init__(clip, len(words.split()) or n_ctx, words)
        generator = make_generator("cocoop", seed)
        hidden = max(clip.embed_dim // 16, 1)
        self.prompt_learner = nn.Module()
        self.prompt_learner.ctx = nn.Parameter(_initial_ctx(clip, self.n_ctx, self.words, seed))
        self.prompt_learner.meta_net = MetaNet(clip.embed_dim, clip.text_width, hidden, generator)

    def class_features(self, classes: Classes) -> None:
        return None

    def logits(self, inputs: Tensor, classes: Classes, class_features: Tensor | None = None) -> Tensor:
        shifts = self.prompt_learner.meta_net(F.normalize(inputs.float(), dim=1))  # (B, W)
        rows = []
        for feature, shift in zip(inputs, shifts, strict=True):
            features = self.encode(classes, self.prompt_learner.ctx + shift, shared=False)
            rows.append(full_contrast_logits(feature.unsqueeze(0), features, self.clip.logit_scale))
        return torch.cat(rows)


class VPT(Learner):
    """Visual prompt tuning: learned tokens in the image tower, fixed texts (Jia et al., arXiv 2203.12119).

    ``depth`` 1 is the shallow variant, the number of layers the deep one.
    """

    trainer = "VPT"
    takes_images = True
    image_encoder: Any  # an nn.Module that only groups parameters under the published names

    def __init__(
        self, clip: Clip, *, n_ctx: int = 8, depth: int = 12, words: str = "a photo of a", seed: int = 0
    ) -> None:
        super().__init__(clip)
        self.tower = PromptedImageTower(clip)
        self.tower.check_depth(depth)
        self.template = f"{words.replace('_', ' ').strip()} {{}}.".strip()
        generator = make_generator("vpt", seed)
        self.depth = depth
        self.image_encoder = nn.Module()
        self.image_encoder.VPT = _vectors(n_ctx, self.tower.width, generator)
        self.image_encoder.transformer = nn.Module()
        self.image_encoder.transformer.resblocks = nn.ModuleDict()
        for layer in range(1, depth):
            holder: Any = nn.Module()
            holder.VPT_shallow = _vectors(n_ctx, self.tower.width, generator)
            self.image_encoder.transformer.resblocks[str(layer)] = holder

    def prompts(self) -> list[Tensor]:
        """The (n, width) vectors of each prompted layer."""
        deep = self.image_encoder.transformer.resblocks
        return [self.image_encoder.VPT, *(deep[str(layer)].VPT_shallow for layer in range(1, self.depth))]

    def prepare(self, class_names: Sequence[str]) -> Classes:
        return Classes(len(class_names), features=encode_templates(self.clip, class_names, [self.template]))

    def class_features(self, classes: Classes) -> Tensor | None:
        return classes.features

    def image_features(self, inputs: Tensor) -> Tensor:
        return self.tower(inputs, self.prompts())


class MaPLe(_TextLearner):
    """Prompts in both towers, those of the images projected from those of the texts (Khattak et al., arXiv 2210.03117).

    Of the words only the first ``n_ctx`` are replaced; the others stay ordinary tokens. With fewer words than ``n_ctx``
    the context starts random, as published.
    """

    trainer = "MaPLe"
    takes_images = True
    prompt_learner: Any  # an nn.Module that only groups parameters under the published names

    def __init__(
        self, clip: Clip, *, n_ctx: int = 2, depth: int = 9, words: str = "a photo of a", seed: int = 0
    ) -> None:
        if 0 < len(words.replace("_", " ").split()) < n_ctx:
            logger.warning("N_CTX is %d but CTX_INIT %r has fewer words, so the context starts random", n_ctx, words)
            words = ""
        super().__init__(clip, n_ctx, words)
        self.tower = PromptedImageTower(clip)
        self.tower.check_depth(depth)
        generator = make_generator("maple", seed)
        width = clip.text_width
        learner = self.prompt_learner = nn.Module()
        learner.ctx = nn.Parameter(_initial_ctx(clip, n_ctx, self.words, seed))
        learner.proj = _linear(width, self.tower.width, generator)
        learner.compound_prompts_text = nn.ParameterList(_vectors(n_ctx, width, generator) for _ in range(1, depth))
        learner.compound_prompt_projections = nn.ModuleList(
            _linear(width, self.tower.width, generator) for _ in range(1, depth)
        )

    def class_features(self, classes: Classes) -> Tensor:
        return self.encode(classes, self.prompt_learner.ctx, list(self.prompt_learner.compound_prompts_text))

    def image_features(self, inputs: Tensor) -> Tensor:
        learner = self.prompt_learner
        deep = zip(learner.compound_prompt_projections, learner.compound_prompts_text, strict=True)
        return self.tower(inputs, [learner.proj(learner.ctx), *(project(vectors) for project, vectors in deep)])


class LASP(_TextLearner):
    """Groups of context vectors that stay close to hand-written prompts (Bulat and Tzimiropoulos, arXiv 2210.01115).

    The templates are dealt out to the groups. The text-to-text loss asks each group's feature of a class to be nearest
    to that class in each of its templates; a class feature is the mean over groups. The paper's fine-tuning of
    normalisation layers and its virtual classes are not part of this.

    Args:
        groups: G. text_weight: factor of the text-to-text loss. templates: of the hand-written prompts.
    """

    trainer = "LASP"
    prompt_learner: Any  # an nn.Module that only groups parameters under the published names

    def __init__(
        self,
        clip: Clip,
        *,
        n_ctx: int = 4,
        words: str = "a photo of a",
        groups: int = 3,
        text_weight: float = 20.0,
        templates: str = "imagenet80",
        seed: int = 0,
    ) -> None:
        words = words.replace("_", " ").strip()
        super().__init__(clip, len(words.split()) or n_ctx, words)
        self.templates, self.text_weight, self.groups = load_templates(templates), text_weight, groups
        if not 1 <= groups <= len(self.templates):
            raise InputError(
                f"TRAINER.LASP.GROUPS is {groups} but {templates} has {len(self.templates)} templates to deal out; "
                f"set it to 1..{len(self.templates)}"
            )
        first = _initial_ctx(clip, self.n_ctx, self.words, seed)
        # Equal groups would stay nearly equal: the others start with a little noise.
        noise = torch.randn((groups, *first.shape), generator=make_generator("lasp", seed)) * _INITIAL_STD
        noise[0] = 0
        self.prompt_learner = nn.Module()
        self.prompt_learner.ctx = nn.Parameter(first + noise)

    def prepare(self, class_names: Sequence[str]) -> Classes:
        tokens = super().prepare(class_names).tokens
        hand_written = [encode_templates(self.clip, class_names, [template]) for template in self.templates]
        return Classes(len(class_names), tokens, torch.stack(hand_written))

    def group_features(self, classes: Classes) -> list[Tensor]:
        """(N, D) unit-norm features of the classes, one tensor per group."""
        return [F.normalize(self.encode(classes, ctx), dim=1) for ctx in self.prompt_learner.ctx]

    def class_features(self, classes: Classes) -> Tensor:
        return torch.stack(self.group_features(classes)).mean(dim=0)

    def training_step(self, inputs: Tensor, classes: Classes) -> tuple[Tensor, Tensor | None]:
        groups = self.group_features(classes)
        logits = self.logits(inputs, classes, torch.stack(groups).mean(dim=0))
        return logits, self.text_weight * self.text_loss(groups, classes)

    def text_loss(self, groups: Sequence[Tensor], classes: Classes) -> Tensor:
        """Mean over templates of the cross entropy that finds each class among the template's texts."""
        assert classes.features is not None
        own = torch.arange(classes.count, device=classes.features.device)
        scale = self.clip.logit_scale
        losses = [
            F.cross_entropy(full_contrast_logits(groups[index % self.groups], anchors, scale), own)
            for index, anchors in enumerate(classes.features)
        ]
        return torch.stack(losses).mean()


class LinearProbe(Learner):
    """One linear layer on the raw image feature; it knows the classes that it was trained on and no others."""

    trainer = "LinearProbe"
    any_classes = False

    def __init__(self, clip: Clip, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(clip)
        self.linear = _linear(clip.embed_dim, num_classes, make_generator("linear probe", seed))

    def prepare(self, class_names: Sequence[str]) -> Classes:
        if len(class_names) != self.linear.out_features:
            raise InputError(
                f"the linear probe was trained on {self.linear.out_features} classes, so it cannot tell "
                f"{len(class_names)} others apart; evaluate it on the data set that it was trained on"
            )
        return Classes(len(class_names))

    def class_features(self, classes: Classes) -> None:
        return None

    def logits(self, inputs: Tensor, classes: Classes, class_features: Tensor | None = None) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            return self.linear(inputs.float())


def _initial_ctx(clip: Clip, n_ctx: int, words: str, seed: int) -> Tensor:
    """(M, W): the embeddings of the words' first tokens, or Normal(0, 0.02)."""
    if not words:
        return SoftPrompt.random(n_ctx, clip.text_width, seed=seed).ctx.detach()
    return SoftPrompt.from_words(words, clip).ctx.detach()[:n_ctx]


def _vectors(count: int, width: int, generator: torch.Generator) -> nn.Parameter:
    if count < 1:
        raise InputError(f"a prompt needs at least 1 vector, got {count}; set its N_CTX to 1 or more")
    return nn.Parameter(torch.randn((count, width), generator=generator) * _INITIAL_STD)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's usual initial range, drawn from ``generator``."""
    layer = nn.Linear(inputs, outputs)
    bound = inputs**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)
    return layer
