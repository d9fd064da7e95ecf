import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detection.deformable_detr.attention import MSDeformAttn, deformable_attention
from prompt_pretrain.errors import InputError

SHAPES = [(5, 7), (3, 4), (1, 2)]


def by_loops(value: Tensor, shapes: list, locations: Tensor, weights: Tensor) -> Tensor:
    """One query, head, level and point at a time, with the bilinear weights written out."""
    batch, _, heads, width = value.shape
    out = torch.zeros(batch, locations.shape[1], heads, width)
    for b, q, m, level, p in torch.cartesian_prod(*(torch.arange(n) for n in locations.shape[:5])).tolist():
        height, columns = shapes[level]
        start = sum(h * w for h, w in shapes[:level])
        x = locations[b, q, m, level, p, 0].item() * columns - 0.5
        y = locations[b, q, m, level, p, 1].item() * height - 0.5
        for i in (int(y // 1), int(y // 1) + 1):
            for j in (int(x // 1), int(x // 1) + 1):
                if 0 <= i < height and 0 <= j < columns:
                    share = (1 - abs(y - i)) * (1 - abs(x - j))
                    out[b, q, m] += weights[b, q, m, level, p] * share * value[b, start + i * columns + j, m]
    return out.flatten(2)


def test_samples_are_those_of_explicit_loops():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 49, 2, 3, generator=generator)
    locations = torch.rand(2, 4, 2, 3, 2, 2, generator=generator) * 1.4 - 0.2  # some outside of the maps
    weights = torch.rand(2, 4, 2, 3, 2, generator=generator)
    assert_close(
        deformable_attention(value, SHAPES, locations, weights),
        by_loops(value, SHAPES, locations, weights),
        rtol=1e-4,
        atol=1e-5,
    )


def test_it_starts_as_rays_round_the_reference():
    attention = MSDeformAttn(d_model=16, n_levels=1, n_heads=4, n_points=2)
    offsets = attention.sampling_offsets(torch.zeros(1, 1, 16)).view(4, 2, 2)
    expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    assert_close(offsets[:, 0], expected, atol=1e-6, rtol=0)
    assert_close(offsets[:, 1], 2 * expected, atol=1e-6, rtol=0)


def test_a_box_reference_scales_offsets_with_its_sides():
    torch.manual_seed(0)
    attention = MSDeformAttn(d_model=8, n_levels=1, n_heads=2, n_points=2)
    features, query = torch.randn(1, 20, 8), torch.randn(1, 1, 8)
    # 0.5 / n_points of a side equals one cell of the 4 x 5 map: sides of 4 cells.
    box = torch.tensor([[[[0.5, 0.5, 4 / 5, 4 / 4]]]])
    assert_close(attention(query, box, features, [(4, 5)]), attention(query, box[..., :2], features, [(4, 5)]))


def test_padded_features_do_not_count():
    torch.manual_seed(0)
    attention = MSDeformAttn(d_model=8, n_levels=1, n_heads=2)
    padding = torch.zeros(1, 20, dtype=torch.bool)
    padding[:, 10:] = True
    features = torch.randn(1, 20, 8)
    other = torch.where(padding[..., None], torch.randn(1, 20, 8), features)
    query, reference = torch.randn(1, 3, 8), torch.rand(1, 3, 1, 2)
    assert_close(
        attention(query, reference, features, [(4, 5)], padding), attention(query, reference, other, [(4, 5)], padding)
    )


def test_gradients_reach_values_offsets_and_weights():
    torch.manual_seed(0)
    attention = MSDeformAttn(d_model=8, n_levels=2, n_heads=2)
    torch.nn.init.normal_(attention.attention_weights.weight)
    attention(torch.randn(1, 3, 8), torch.rand(1, 3, 2, 2), torch.randn(1, 11, 8), [(2, 4), (1, 3)]).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in attention.parameters())


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="HIDDEN_DIM 10 is no multiple of MODEL.DETR.NHEADS 4"):
        MSDeformAttn(d_model=10, n_heads=4)
