"""The frozen CLIP text tower that encodes image captions during training."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from prompt_pretrain.clip import Clip, load_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.text_tower import find_text_tower, obstacle_to_prefix_sharing

__all__ = ["CaptionEncoder", "build_caption_encoder"]

PUBLISHED_CLIP = "ViT-B/32"
_VOCABULARY = 49408
_CONTEXT = 77


class CaptionEncoder(nn.Module):
    """CLIP's text transformer, frozen: captions to features, not normalised.

    Fresh parameters are all zero, which no trained tower is; `forward` then fetches the weights of ``clip_name``. So
    a model can be built, and its checkpoint loaded, without those weights at hand. The names of the state dict are
    those of OpenAI's CLIP without its image tower.

    Args:
        clip_name: CLIP to fetch the weights from, as `prompt_pretrain.clip.load_clip` takes it.
        width, layers, heads, embed_dim, context_length, vocabulary: sizes, by default those of ViT-B/32.
        activation: of the MLPs.
        tokenizer: has ``encode(text) -> list of ids`` and the ids ``sot_token_id``, ``eot_token_id``; None for CLIP's.
    """

    def __init__(
        self,
        clip_name: str = PUBLISHED_CLIP,
        *,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        embed_dim: int = 512,
        context_length: int = _CONTEXT,
        vocabulary: int = _VOCABULARY,
        activation: Callable[[], nn.Module] = QuickGELU,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.clip_name = clip_name
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(_Block(width, heads, activation) for _ in range(layers))
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.ln_final = nn.LayerNorm(width)
        self.requires_grad_(False)
        for parameter in self.parameters():
            parameter.zero_()
        self._tokenizer = tokenizer
        self._has_weights = False

    @classmethod
    def from_clip(cls, clip: Clip) -> "CaptionEncoder":
        """The text tower of ``clip``.

        Raises:
            InputError: it is no plain CLIP text transformer.
        """
        tower = find_text_tower(clip.model)
        obstacle = obstacle_to_prefix_sharing(tower)
        if tower is None or obstacle is not None or not isinstance(tower.projection, Tensor):
            raise InputError(
                f"{clip.clip_id} cannot encode captions: {obstacle or 'its projection is no matrix'}; set "
                "MODEL.CAPTION_CLIP to a CLIP with a standard text transformer"
            )
        encoder = cls(
            clip.clip_id,
            width=tower.width,
            layers=len(tower.blocks),
            heads=tower.heads,
            embed_dim=clip.embed_dim,
            context_length=len(tower.positional_embedding),
            vocabulary=tower.token_embedding.num_embeddings,
            activation=type(tower.blocks[0].mlp.gelu),
            tokenizer=clip.tokenizer,
        )
        encoder._copy(clip)
        return encoder

    @property
    def embed_dim(self) -> int:
        """Width of the features."""
        return self.text_projection.shape[1]

    def train(self, mode: bool = True) -> "CaptionEncoder":
        """Nothing: the tower is frozen."""
        return self

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> Tensor:
        """(N, D) float32 features of N texts, not normalised, on the device of the parameters.

        Raises:
            InputError: the weights of the tower are needed and cannot be fetched.
        """
        self.fetch_missing_weights()
        tokens = self.tokenize(captions).to(self.positional_embedding.device)
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        mask = torch.full((tokens.shape[1],) * 2, float("-inf"), device=x.device).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        # Every row's own end: the end-of-text token has the largest id.
        x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)]
        return (self.ln_final(x) @ self.text_projection).float()

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """(N, L) token ids, padded with 0 to the longest row.

        Of a caption that is longer than the context, a random window remains; it may lack the first and last token.
        """
        tokenizer = self._tokenizer or _tokenizer()
        rows = []
        for caption in captions:
            row = [tokenizer.sot_token_id, *tokenizer.encode(caption), tokenizer.eot_token_id]
            surplus = len(row) - len(self.positional_embedding)
            if surplus > 0:
                start = int(torch.randint(surplus + 1, (1,)))
                row = row[start : start + len(self.positional_embedding)]
            rows.append(torch.tensor(row))
        # What stands behind the last token has no effect in a causal transformer: no padding to the full context.
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def fetch_missing_weights(self) -> None:
        """Load the weights of ``clip_name`` unless a checkpoint, or anything else, has already filled the tower."""
        if self._has_weights:
            return
        if not self.positional_embedding.any():
            try:
                clip = load_clip(self.clip_name)
            except InputError as error:
                raise InputError(
                    f"captions need the text tower of {self.clip_name} (MODEL.CAPTION_CLIP), which the checkpoint "
                    f"does not hold: {error}"
                ) from error
            self._copy(clip)
        self._has_weights = True

    def _copy(self, clip: Clip) -> None:
        weights = find_text_tower(clip.model).module.state_dict()
        self.load_state_dict({name: weights[name].float() for name in self.state_dict()})


class _Block(nn.Module):
    """A pre-norm transformer block; children in the order of OpenAI's CLIP."""

    def __init__(self, width: int, heads: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        layers = [
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", activation()),
            ("c_proj", nn.Linear(4 * width, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (N, L, C); ``mask`` (L, L) is added to the logits of the attention."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def build_caption_encoder(clip_name: str) -> CaptionEncoder:
    """The text tower of a CLIP; that of the published ViT-B/32 is built without fetching its weights yet."""
    if clip_name == PUBLISHED_CLIP:
        return CaptionEncoder()
    return CaptionEncoder.from_clip(load_clip(clip_name))


@cache
def _tokenizer() -> Any:
    return open_clip.SimpleTokenizer()  # CLIP's byte-pair encoding
