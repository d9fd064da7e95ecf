import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld import parse_thing, things
from prompt_pretrain.shapeworld.drawing import STYLES
from prompt_pretrain.shapeworld.images import CONDITION_SHARES, plan_scene, render_image, render_scene

ROOT = Path(__file__).parents[3]
STAR = parse_thing("striped red star")


def digest(count: int = 12) -> str:
    pixels = [render_image(thing, index) for index, thing in enumerate(things("base")[:count])]
    return hashlib.sha256(np.stack(pixels).tobytes()).hexdigest()


def test_pictures_are_the_same_in_another_process_and_order():
    render_image(STAR, 5)
    code = "import tests.prompt_pretrain.shapeworld.test_images as t; print(t.digest())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert other.stdout.strip() == digest()


def test_every_argument_changes_the_pixels():
    first = render_image(STAR, 0)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    others = [
        render_image(STAR, 1),
        render_image(STAR, 0, split="val"),
        render_image(STAR, 0, split="clip"),
        render_image(STAR, 0, seed=1),
        render_image(parse_thing("striped red heart"), 0),
    ]
    for other in others:
        assert np.abs(first.astype(int) - other).mean() > 5
    np.testing.assert_array_equal(render_image(STAR, 0), first)


def test_a_fixed_style_keeps_the_scene():
    scenes = [plan_scene(STAR, 3, style=style) for style in STYLES]
    assert len({replace(scene, style="") for scene in scenes}) == 1
    looks = [render_scene(scene)[0].astype(int) for scene in scenes]
    assert min(np.abs(a - b).mean() for i, a in enumerate(looks) for b in looks[:i]) > 1


def test_styles_grounds_and_conditions_all_occur():
    scenes = [plan_scene(STAR, index) for index in range(600)]
    assert {scene.style for scene in scenes} == set(STYLES)
    assert len({scene.ground for scene in scenes}) == 12
    assert {scene.condition for scene in scenes} == set(CONDITION_SHARES)
    assert sum(CONDITION_SHARES.values()) == pytest.approx(1)
    photos = sum(scene.style == "photo" for scene in scenes) / 600
    assert photos == pytest.approx(0.3, abs=0.06)


def test_the_thing_stays_in_the_picture_unless_cropped():
    for index in range(200):
        scene = plan_scene(STAR, index)
        low = min(centre - scene.size / 2 for centre in scene.centre)
        high = max(centre + scene.size / 2 for centre in scene.centre)
        assert scene.condition == "cropped" or (low >= -1e-9 and high <= 1 + 1e-9)


def test_every_condition_shows():
    clean = render_scene(replace(plan_scene(STAR, 0), condition=""))[0].astype(int)
    for condition in CONDITION_SHARES:
        if condition not in ("", "cropped"):  # a crop is decided with the pose
            spoiled = render_scene(replace(plan_scene(STAR, 0), condition=condition))[0]
            assert np.abs(clean - spoiled).mean() > 1, condition
    grey = render_scene(replace(plan_scene(STAR, 0), condition="black and white"))[0].astype(int)
    assert np.ptp(grey, axis=2).max() <= 1


def test_sizes_show_the_same_scene():
    small, large = render_image(STAR, 7, size=32), render_image(STAR, 7, size=128)
    assert large.shape == (128, 128, 3)
    assert small.mean() == pytest.approx(large.mean(), rel=0.15)


def test_unknown_words_are_refused():
    with pytest.raises(InputError, match="unknown image split 'test'; choose one of train, val, clip"):
        render_image(STAR, 0, split="test")
    with pytest.raises(InputError, match="unknown ShapeWorld style 'oil'; choose one of photo, cartoon"):
        render_image(STAR, 0, style="oil")
