"""The encoder-decoder transformer of DETR (arXiv 2005.12872), whose attention adds positions to queries and keys."""

from torch import Tensor, nn

__all__ = ["Transformer", "TransformerEncoder", "build_encoder"]


class TransformerEncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a residual and a norm behind (or before: ``pre_norm``)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout=dropout)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """(N, B, C) tokens from tokens x (N, B, C) at positions pos (N, B, C)."""
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), pos)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, pos))
        return self.norm2(x + self._feed_forward(x))

    def _attend(self, x: Tensor, pos: Tensor) -> Tensor:
        where = x + pos
        return self.dropout(self.self_attn(where, where, x, need_weights=False)[0])

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.linear1(x).relu())))


class TransformerDecoderLayer(nn.Module):
    """Self-attention of queries, attention to the memory and a feed-forward network."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout=dropout)
        self.multihead_attn = nn.MultiheadAttention(width, heads, dropout=dropout)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, memory: Tensor, pos: Tensor, query_pos: Tensor) -> Tensor:
        """(Q, B, C) queries from x and query_pos (Q, B, C), memory and pos (N, B, C)."""
        if self.pre_norm:
            x = x + self._attend_to_queries(self.norm1(x), query_pos)
            x = x + self._attend_to_memory(self.norm2(x), memory, pos, query_pos)
            return x + self._feed_forward(self.norm3(x))
        x = self.norm1(x + self._attend_to_queries(x, query_pos))
        x = self.norm2(x + self._attend_to_memory(x, memory, pos, query_pos))
        return self.norm3(x + self._feed_forward(x))

    def _attend_to_queries(self, x: Tensor, query_pos: Tensor) -> Tensor:
        where = x + query_pos
        return self.dropout(self.self_attn(where, where, x, need_weights=False)[0])

    def _attend_to_memory(self, x: Tensor, memory: Tensor, pos: Tensor, query_pos: Tensor) -> Tensor:
        return self.dropout(self.multihead_attn(x + query_pos, memory + pos, memory, need_weights=False)[0])

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.linear1(x).relu())))


class TransformerEncoder(nn.Module):
    """A stack of encoder layers; with ``pre_norm`` a norm closes it, even where there are no layers."""

    def __init__(self, width: int, heads: int, depth: int, hidden: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(width, heads, hidden, dropout, pre_norm) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width) if pre_norm else None

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, pos)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers and one norm, which the output of every layer passes on its way out."""

    def __init__(self, width: int, heads: int, depth: int, hidden: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(width, heads, hidden, dropout, pre_norm) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor, pos: Tensor, query_pos: Tensor) -> list[Tensor]:
        """Normalised queries (Q, B, C) behind every layer."""
        outputs = []
        for layer in self.layers:
            x = layer(x, memory, pos, query_pos)
            outputs.append(self.norm(x))
        return outputs


class Transformer(nn.Module):
    """Encoder over a feature map and decoder of learned queries; weights of matrices start Xavier-uniform.

    Args:
        d_model: C, width of tokens.
        nhead: attention heads.
        dim_feedforward: hidden width of the feed-forward networks.
        normalize_before: norms stand before attention (pre-norm).
        return_intermediate_dec: return the queries behind every decoder layer, not only the last.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        normalize_before: bool = False,
        return_intermediate_dec: bool = False,
    ) -> None:
        super().__init__()
        shape = (dim_feedforward, dropout, normalize_before)
        self.encoder = TransformerEncoder(d_model, nhead, num_encoder_layers, *shape)
        self.decoder = TransformerDecoder(d_model, nhead, num_decoder_layers, *shape)
        self.return_intermediate_dec = return_intermediate_dec
        _init_matrices(self)

    def forward(self, src: Tensor, query_embed: Tensor, pos_embed: Tensor) -> tuple[list[Tensor], Tensor]:
        """Queries (B, Q, C) behind each returned decoder layer, and the encoded map (B, C, H, W).

        Args:
            src: (B, C, H, W) feature map.
            query_embed: (Q, C) learned positions of queries.
            pos_embed: (B, C, H, W) positions of the map.
        """
        batch, channels, height, width = src.shape
        pos = pos_embed.flatten(2).permute(2, 0, 1).to(src.dtype)  # (H·W, B, C)
        memory = self.encoder(src.flatten(2).permute(2, 0, 1), pos)
        query_pos = query_embed[:, None].expand(-1, batch, -1)
        outputs = self.decoder(query_pos.new_zeros(query_pos.shape), memory, pos, query_pos)
        if not self.return_intermediate_dec:
            outputs = outputs[-1:]
        encoded = memory.permute(1, 2, 0).reshape(batch, channels, height, width)
        return [output.transpose(0, 1) for output in outputs], encoded


def build_encoder(
    width: int, heads: int, depth: int, hidden: int, dropout: float, pre_norm: bool
) -> TransformerEncoder:
    """An encoder alone, with the weights of :class:`Transformer`."""
    encoder = TransformerEncoder(width, heads, depth, hidden, dropout, pre_norm)
    _init_matrices(encoder)
    return encoder


def _init_matrices(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
