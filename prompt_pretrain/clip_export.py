"""The towers of a CLIP and its zero-shot classifier, ready for export (see ``model_export``).

Class embeddings are an input of the classifier, so that its vocabulary stays open.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.model_export import Exportable
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.prompt_tokens import PromptTokens, is_simple_tokenizer, tokenize_prompts, tokenize_texts
from prompt_pretrain.text_tower import TextTower, find_text_tower, obstacle_to_prefix_sharing

__all__ = ["ImageTower", "PromptedTextTower", "ZeroShotImageClassifier", "classifier", "image_tower", "text_tower"]
__all__ += ["token_rows"]

_NAMES = ("dog", "traffic light", "striped red star")  # of different numbers of tokens


class ImageTower(nn.Module):
    """Features (B, D), not normalised, of square RGB images (B, 3, S, S) with values in [0, 255]."""

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.visual = clip.model.visual
        for name, values in (("mean", clip.mean), ("std", clip.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        return self.visual((images - self.mean) / self.std)


class ZeroShotImageClassifier(nn.Module):
    """Logits (B, C) of images as of :class:`ImageTower`: scaled cosine with class embeddings (C, D) of any norm."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.tower = ImageTower(clip)
        self.logit_scale = clip.logit_scale

    def forward(self, images: Tensor, class_embeddings: Tensor) -> Tensor:
        features = F.normalize(self.tower(images), dim=1)
        return self.logit_scale * features @ F.normalize(class_embeddings, dim=1).t()


class PromptedTextTower(nn.Module):
    """Text features (C, D), not normalised, of rows of tokens (C, L) as of :func:`token_rows`.

    Those of class names are their class embeddings.
    """

    ctx: Tensor | None

    def __init__(self, tower: TextTower, ctx: Tensor | None, eot: int) -> None:
        """
        Args:
            ctx: (M, W) context vectors of a prompt, or None.
            eot: id of the token that ends a text.
        """
        super().__init__()
        # These and not the whole module, which may hold the image tower too.
        self.token_embedding, self.transformer = tower.token_embedding, tower.module.transformer
        self.positional_embedding = tower.positional_embedding
        self.ln_final, self.projection = tower.ln_final, tower.projection
        self.register_buffer("attn_mask", tower.attn_mask)
        self.project = tower.project
        self.eot = eot
        self.register_buffer("ctx", ctx)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens.clamp(min=0))
        if self.ctx is not None:
            slots = self.ctx[(-1 - tokens).clamp(0, len(self.ctx) - 1)]
            x = torch.where((tokens < 0).unsqueeze(-1), slots, x)
        x = self.transformer(x + self.positional_embedding, attn_mask=self.attn_mask)
        end = (tokens == self.eot).int().argmax(dim=1)  # the first, as CLIP does
        pooled = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        return self.project(pooled)


def token_rows(prompts: PromptTokens, context_length: int) -> Tensor:
    """(N, context_length) int64: token ids, ``-1 - i`` where context vector i stands, 0 behind the end."""
    rows = torch.where(prompts.ctx_index >= 0, -1 - prompts.ctx_index, prompts.tokens)
    return F.pad(rows, (0, context_length - rows.shape[1]))


def image_tower(clip: Clip) -> Exportable:
    """The image tower, for any number of images."""
    _check(clip)
    first, second = _images(clip, 2, seed=0), _images(clip, 3, seed=1)
    return Exportable(
        name="image-tower",
        module=ImageTower(clip).eval(),
        inputs={"images": first},
        sizes={"images": {0: "images"}},
        outputs={"image_features": ("images", clip.embed_dim)},
        others=({"images": second},),
        facts=_facts(clip),
    )


def classifier(clip: Clip) -> Exportable:
    """Images and class embeddings to logits, for any number of either."""
    _check(clip)
    inputs = [
        {"images": _images(clip, batch, seed), "class_embeddings": _rows(classes, clip.embed_dim, seed)}
        for seed, (batch, classes) in enumerate(((2, 5), (3, 4)))
    ]
    return Exportable(
        name="classifier",
        module=ZeroShotImageClassifier(clip).eval(),
        inputs=inputs[0],
        sizes={"images": {0: "images"}, "class_embeddings": {0: "classes"}},
        outputs={"logits": ("images", "classes")},
        others=inputs[1:],
        facts=_facts(clip) | {"logit_scale": clip.logit_scale},
    )


def text_tower(clip: Clip, prompt: SoftPrompt | None = None) -> Exportable:
    """The text tower for any number of texts, with the context vectors of a learned prompt, if one is given.

    Raises:
        InputError: a prompt of other contexts for each class or for another CLIP, a tower of another kind than CLIP's.
    """
    _check(clip)
    tower = find_text_tower(clip.model)
    obstacle = obstacle_to_prefix_sharing(tower)
    if tower is None or obstacle or not is_simple_tokenizer(clip.tokenizer):
        raise InputError(
            f"the text tower of {clip.clip_id} cannot be exported: {obstacle or 'its tokenizer is not that of CLIP'}; "
            "export class embeddings instead (tools/export_class_embeddings.py)"
        )
    if prompt is not None and prompt.class_specific:
        raise InputError(
            f"the prompt holds contexts of {len(prompt.ctx)} classes of its own, so its vocabulary is closed; export "
            "class embeddings instead (tools/export_class_embeddings.py)"
        )
    if prompt is not None and prompt.ctx.shape[1] != tower.width:
        raise InputError(
            f"the prompt has vectors of width {prompt.ctx.shape[1]}, {clip.clip_id} needs {tower.width}; "
            "give the CLIP it was trained with as --clip"
        )
    rows = [_tokens(clip, names, prompt) for names in (_NAMES[:2], _NAMES)]
    layout = {"n_ctx": 0} if prompt is None else {"n_ctx": prompt.n_ctx, "class_position": prompt.position}
    eot = clip.tokenizer.eot_token_id
    ctx = None if prompt is None else prompt.ctx.detach().clone().float()
    return Exportable(
        name="text-tower",
        module=PromptedTextTower(tower, ctx, eot).eval(),
        inputs={"tokens": rows[0]},
        sizes={"tokens": {0: "texts"}},
        outputs={"text_features": ("texts", clip.embed_dim)},
        others=({"tokens": rows[1]},),
        facts={
            "clip": clip.clip_id,
            "prompt": layout,
            "end_token": eot,
            "example": {"texts": list(_NAMES), "tokens": rows[1].tolist()},
        },
    )


def _tokens(clip: Clip, names: tuple[str, ...], prompt: SoftPrompt | None) -> Tensor:
    if prompt is None:
        prompts = tokenize_texts(names, clip.tokenizer, context_length=clip.context_length)
    else:
        prompts = tokenize_prompts(
            names, clip.tokenizer, prompt.n_ctx, prompt.position, context_length=clip.context_length
        )
    return token_rows(prompts, clip.context_length)


def _check(clip: Clip) -> None:
    if clip.dtype is not torch.float32 or clip.device.type != "cpu":
        raise InputError(f"{clip} is exported from the CPU in fp32; load it with device 'cpu' and precision 'fp32'")


def _facts(clip: Clip) -> dict[str, object]:
    return {
        "clip": clip.clip_id,
        "images": f"RGB, values 0 to 255, shorter side resized to {clip.image_size} (bicubic), centre crop",
        "embedding_width": clip.embed_dim,
    }


def _images(clip: Clip, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, clip.image_size, clip.image_size, generator=generator) * 255


def _rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
