"""CLIP's frozen vision transformer, prepared to encode many images: the same features with less work."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

__all__ = ["PackedVit", "packed_vit"]

_SLOPE = 1.702  # of QuickGELU: x · sigmoid(1.702 x) = silu(1.702 x) / 1.702
_CHUNK_BYTES = {"cpu": 10 << 20, "cuda": 1 << 30}  # of the widest activation; on a CPU chunks stay in the cache

_packed: "WeakKeyDictionary[nn.Module, dict[torch.dtype, tuple[object, PackedVit]]]" = WeakKeyDictionary()


def packed_vit(tower: VisionTransformer, dtype: torch.dtype = torch.float32) -> "PackedVit | None":
    """The tower prepared for products in ``dtype``, kept until its weights change; None if it has unusual parts."""
    if not _is_plain(tower):
        return None
    state = tuple((weight.data_ptr(), weight._version) for weight in tower.parameters())
    kept = _packed.setdefault(tower, {})
    if dtype not in kept or kept[dtype][0] != state:
        kept[dtype] = (state, PackedVit(tower, dtype))
    return kept[dtype][1]


class PackedVit:
    """The image tower of a CLIP with its weights laid out for inference without gradients.

    It computes what the tower does, up to rounding, but

    * on a CPU the weights are reordered once for its matrix products, into which the activations are fused;
    * images go through all layers in chunks whose activations fit the cache;
    * the last layer computes the class token's row alone, as nothing else of its result is used.

    In bfloat16 the products take and give bfloat16; the residual stream, LayerNorm and softmax sums stay in float32.
    Twice the memory of the tower's weights, or half of it in bfloat16, is added to that of the tower.
    """

    def __init__(self, tower: VisionTransformer, dtype: torch.dtype = torch.float32) -> None:
        # Parts of the tower and not the tower, which would keep itself alive.
        self.conv, self.ln_pre, self.ln_post = tower.conv1, tower.ln_pre, tower.ln_post
        self.class_embedding, self.proj = tower.class_embedding, tower.proj
        self.dtype = dtype
        *blocks, last = tower.transformer.resblocks
        self.blocks = [_Block(block, dtype) for block in blocks]
        self.last = _LastBlock(last, dtype)
        self.widest = last.mlp.c_fc.out_features

    @torch.no_grad()
    def encode(self, images: Tensor, positions: Tensor) -> Tensor:
        """(B, D) float32 features of normalised images (B, 3, H, W) whose tokens have positions (1 + h·w, C)."""
        bytes_each = len(positions) * self.widest * self.dtype.itemsize
        size = max(1, _CHUNK_BYTES.get(images.device.type, 1 << 30) // bytes_each)
        with torch.autocast(images.device.type, enabled=False):
            tokens = torch.cat([self._class_token(chunk, positions) for chunk in images.split(size)])
            return self.ln_post(tokens) @ self.proj

    def _class_token(self, images: Tensor, positions: Tensor) -> Tensor:
        patches = self.conv(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], dim=1).add_(positions))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class _Block:
    """A residual block; its input (B, T, C) is overwritten."""

    def __init__(self, block: ResidualAttentionBlock, dtype: torch.dtype) -> None:
        attention, mlp = block.attn, block.mlp
        quick = isinstance(mlp.gelu, QuickGELU)
        slope = _SLOPE if quick else 1.0
        self.norms = (block.ln_1, block.ln_2)
        self.dtype, self.heads = dtype, attention.num_heads
        self._pack_inputs(attention.in_proj_weight.detach(), attention.in_proj_bias.detach())
        self.out = _linear(attention.out_proj.weight, attention.out_proj.bias, dtype)
        self.up = _linear(mlp.c_fc.weight * slope, mlp.c_fc.bias * slope, dtype, "swish" if quick else "gelu")
        self.down = _linear(mlp.c_proj.weight / slope, mlp.c_proj.bias, dtype)

    def _pack_inputs(self, weight: Tensor, bias: Tensor) -> None:
        self.qkv = _linear(weight, bias, self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        q, k, v = self._by_head(self.qkv(self._norm(0, x)), 3)
        x += self.out(_attend(q, k, v))
        x += self.down(self.up(self._norm(1, x)))
        return x

    def _norm(self, index: int, x: Tensor) -> Tensor:
        return self.norms[index](x).to(self.dtype)

    def _by_head(self, joined: Tensor, count: int) -> tuple[Tensor, ...]:
        """``count`` tensors (B, heads, T, C / heads) from (B, T, count · C)."""
        batch, tokens, _ = joined.shape
        return joined.view(batch, tokens, count, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()


class _LastBlock(_Block):
    """A residual block that gives the first row (B, C) of its result."""

    def _pack_inputs(self, weight: Tensor, bias: Tensor) -> None:
        width = weight.shape[1]
        self.query = _linear(weight[:width], bias[:width], self.dtype)
        self.key_value = _linear(weight[width:], bias[width:], self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        normed = self._norm(0, x)
        (q,) = self._by_head(self.query(normed[:, :1].contiguous()), 1)
        k, v = self._by_head(self.key_value(normed), 2)
        x = x[:, :1] + self.out(_attend(q, k, v))
        x += self.down(self.up(self._norm(1, x)))
        return x[:, 0]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, T, C) attention of (B, heads, T, C / heads)."""
    if q.dtype is torch.bfloat16 and q.device.type == "cpu":
        # Faster than torch's fused kernel, whose products are not those of oneDNN.
        weights = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(2, 3)).softmax(-1)
        found = torch.matmul(weights, v)
    else:
        found = F.scaled_dot_product_attention(q, k, v)
    return found.transpose(1, 2).flatten(2)


def _linear(weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: str = "none") -> Callable[[Tensor], Tensor]:
    """A linear layer followed by silu ("swish"), "gelu" or "none"."""
    weight, bias = weight.detach().to(dtype).contiguous(), bias.detach().to(dtype)
    if _has_packed_products(weight):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        algorithm = "none" if activation == "gelu" else ""
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], algorithm)
    if activation == "swish":
        return lambda x: F.silu(F.linear(x, weight, bias), inplace=True)
    if activation == "gelu":
        return lambda x: F.gelu(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)


def _has_packed_products(weight: Tensor) -> bool:
    """Whether oneDNN's linear layers, which torch's compiler uses, are there for this device and type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return weight.dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _is_plain(tower: VisionTransformer) -> bool:
    """Whether the tower is as OpenAI published it, in float32, with either GELU."""
    parts = [tower.ln_post, *(each for block in tower.transformer.resblocks for each in (block.ln_1, block.ln_2))]
    return (
        type(tower) is VisionTransformer
        and tower.pool_type == "tok"
        and tower.attn_pool is None
        and tower.proj is not None
        and not tower.output_tokens
        and isinstance(tower.patch_dropout, nn.Identity)
        and tower.conv1.weight.dtype is torch.float32
        and all(type(part) is LayerNorm for part in parts)
        and all(_is_plain_block(block) for block in tower.transformer.resblocks)
    )


def _is_plain_block(block: nn.Module) -> bool:
    if type(block) is not ResidualAttentionBlock:
        return False
    activation: nn.Module = block.mlp.get_submodule("gelu")
    return (
        (type(activation) is QuickGELU or (type(activation) is nn.GELU and activation.approximate == "none"))
        and isinstance(block.ls_1, nn.Identity)
        and isinstance(block.ls_2, nn.Identity)
    )
