import numpy as np
import pytest

from prompt_pretrain.shapeworld.classes import COLOURS, PATTERNS, SHAPES, Thing
from prompt_pretrain.shapeworld.drawing import STYLES, draw_object, style_ground
from prompt_pretrain.shapeworld.grounds import GROUNDS, ground_texture
from prompt_pretrain.shapeworld.patterns import pattern_field
from prompt_pretrain.shapeworld.shapes import outline


def draw(thing: Thing, box=(8.0, 8.0, 56.0, 56.0), style="cartoon", seed=0, size=64) -> tuple[np.ndarray, np.ndarray]:
    canvas = np.full((size, size, 3), 0.5, np.float32)
    return canvas, draw_object(canvas, thing, box, np.random.default_rng(seed), style=style)


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_fit_the_unit_square_exactly(shape):
    points = np.concatenate(outline(shape))
    extent = points.max(axis=0) - points.min(axis=0)
    assert extent.max() == pytest.approx(2.0)
    np.testing.assert_allclose(points.max(axis=0) + points.min(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_things_fill_their_box_and_stay_inside(shape):
    _, mask = draw(Thing("plain", "red", shape))
    rows, columns = np.nonzero(mask > 0.5)
    assert min(rows.min(), columns.min()) >= 7
    assert max(rows.max(), columns.max()) <= 56
    assert max(np.ptp(rows), np.ptp(columns)) >= 45  # of 48
    assert mask.min() == 0.0
    assert mask.max() == 1.0


def test_no_two_shapes_look_alike():
    masks = [draw(Thing("plain", "red", shape))[1] for shape in SHAPES]
    for first in range(len(masks)):
        for second in range(first):
            overlap = np.minimum(masks[first], masks[second]).sum() / np.maximum(masks[first], masks[second]).sum()
            assert overlap < 0.93, (SHAPES[first], SHAPES[second])


def test_area_of_a_circle():
    _, mask = draw(Thing("plain", "red", "circle"), box=(8, 8, 56, 56))
    rows, columns = np.nonzero(mask > 0.5)
    ellipse = np.pi / 4 * (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # it may be stretched
    assert mask.sum() == pytest.approx(ellipse, rel=0.06)


def test_a_hollow_thing_covers_its_band_only():
    _, full = draw(Thing("plain", "red", "square"))
    _, hollow = draw(Thing("hollow", "red", "square"))
    assert hollow[32, 32] == 0.0
    assert 0.15 < hollow.sum() / full.sum() < 0.7


def test_only_the_box_changes():
    canvas, mask = draw(Thing("striped", "blue", "gear"), box=(4, 4, 30, 30))
    assert (canvas[34:] == 0.5).all()
    assert (canvas[:, 34:] == 0.5).all()
    assert (canvas[mask == 1] != 0.5).any()


def test_parts_outside_the_canvas_are_cut():
    _, mask = draw(Thing("plain", "red", "circle"), box=(-30, 10, 18, 58))
    assert 0 < mask.sum() < 0.5 * 48 * 48
    assert mask[:, 20:].max() == 0
    canvas, mask = draw(Thing("plain", "red", "circle"), box=(-60, 0, -20, 40))
    assert mask.sum() == 0
    assert (canvas == 0.5).all()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_plain_thing_has_about_its_colour(colour):
    seen = np.array([np.median(draw(Thing("plain", c, "circle"))[0][28:36, 28:36], axis=(0, 1)) for c in COLOURS])
    own = np.median(draw(Thing("plain", colour, "circle"), seed=5)[0][28:36, 28:36], axis=(0, 1))
    assert COLOURS[int(np.abs(seen - own).sum(axis=1).argmin())] == colour


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mix_two_tones(pattern):
    axis = np.linspace(-1, 1, 40, dtype=np.float32)
    field = pattern_field(pattern, *np.meshgrid(axis, axis), 2 / 40, np.random.default_rng(0))
    assert field.min() >= 0.0
    assert field.max() <= 1.0
    assert (field.mean() == 0) if pattern in ("plain", "hollow") else (0.15 < field.mean() < 0.85)


def test_patterns_differ_on_the_same_shape():
    looks = [draw(Thing(pattern, "red", "circle"))[0] for pattern in PATTERNS]
    for first in range(len(looks)):
        for second in range(first):
            assert np.abs(looks[first] - looks[second]).mean() > 0.003, (PATTERNS[first], PATTERNS[second])


@pytest.mark.parametrize("ground", GROUNDS)
def test_grounds_are_textures_of_any_size(ground):
    texture = ground_texture(ground, 48, 80, np.random.default_rng(0))
    assert texture.shape == (48, 80, 3)
    assert texture.dtype == np.float32
    assert texture.min() >= 0.0
    assert texture.max() <= 1.0
    assert texture.std(axis=(0, 1)).max() > 0.004


def test_styles_differ():
    texture = ground_texture("grass", 64, 64, np.random.default_rng(0))
    looks = []
    for style in STYLES:
        canvas = style_ground(texture, style)
        draw_object(canvas, Thing("striped", "red", "star"), (8, 8, 56, 56), np.random.default_rng(0), style=style)
        looks.append(canvas)
    distances = [np.abs(a - b).mean() for i, a in enumerate(looks) for b in looks[:i]]
    assert min(distances) > 0.0
    assert sorted(distances)[4] > 0.02
