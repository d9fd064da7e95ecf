import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld import parse_thing, things
from prompt_pretrain.shapeworld.drawing import STYLES
from prompt_pretrain.shapeworld.grounds import GROUNDS
from prompt_pretrain.shapeworld.scenes import ClassMix, class_mix, plan_scene, render_scene

ROOT = Path(__file__).parents[3]
MIX = class_mix(things("base")[:30], things("novel")[:10])


def digest(count: int = 6) -> str:
    everything = hashlib.sha256()
    for index in range(count):
        scene = render_scene(plan_scene(index, MIX), 64)
        for array in (scene.pixels, scene.ground_map, scene.thing_map):
            everything.update(array.tobytes())
    return everything.hexdigest()


def test_scenes_are_the_same_in_another_process_and_order() -> None:
    render_scene(plan_scene(9, MIX), 64)
    code = "import tests.prompt_pretrain.shapeworld.test_scenes as t; print(t.digest())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert other.stdout.strip() == digest()


def test_index_split_and_seed_give_other_scenes() -> None:
    plans = [plan_scene(0, MIX), plan_scene(1, MIX), plan_scene(0, MIX, split="val"), plan_scene(0, MIX, seed=1)]
    assert len({plan.things for plan in plans}) == 4
    assert plan_scene(0, MIX) == plans[0]


def test_the_layout_does_not_depend_on_the_classes() -> None:
    others = class_mix(things("base")[100:130], things("novel")[:10])
    for index in range(20):
        mine, theirs = plan_scene(index, MIX), plan_scene(index, others)
        assert (mine.grounds, mine.style) == (theirs.grounds, theirs.style)
        assert [placed.box for placed in mine.things] == [placed.box for placed in theirs.things]


@pytest.mark.parametrize("size", [64, 96, 200])
def test_sizes_show_the_same_scene(size: int) -> None:
    for index in range(6):
        plan = plan_scene(index, MIX)
        large, other = render_scene(plan, 320), render_scene(plan, size)
        height, width = other.thing_map.shape
        assert max(height, width) == size
        assert (height, width) == (round(plan.height * size), round(plan.width * size))
        rows = (np.arange(height) + 0.5) * large.thing_map.shape[0] / height
        columns = (np.arange(width) + 0.5) * large.thing_map.shape[1] / width
        same = large.thing_map[np.ix_(rows.astype(int), columns.astype(int))] == other.thing_map
        assert same.mean() > 0.93
        same = large.ground_map[np.ix_(rows.astype(int), columns.astype(int))] == other.ground_map
        assert same.mean() > 0.97


def test_counts_grounds_styles_and_conditions_all_occur() -> None:
    plans = [plan_scene(index, MIX) for index in range(400)]
    assert {plan.style for plan in plans} == set(STYLES)
    assert {plan.condition for plan in plans} == {"", "blurry", "dark", "bright", "hard to see"}
    assert {ground for plan in plans for ground in plan.grounds} == set(GROUNDS)
    assert {len(plan.grounds) for plan in plans} == {2, 3}
    assert {(plan.width, plan.height) for plan in plans} == {(1, 0.75), (0.75, 1), (1, 1)}
    alone = Counter(sum(not placed.crowd for placed in plan.things) for plan in plans)
    assert set(alone) >= set(range(1, 7))
    crowds = sum(any(placed.crowd for placed in plan.things) for plan in plans) / len(plans)
    assert 0.01 < crowds < 0.1
    for plan in plans:
        assert len(set(plan.grounds)) == len(plan.grounds)
        assert "sky" not in plan.grounds[1:]


def test_two_regions_at_least_are_large() -> None:
    for index in range(40):
        shares = np.bincount(render_scene(plan_scene(index, MIX), 48).ground_map.ravel()) / (48 * 36)
        assert sorted(shares)[-2] > 0.05


def test_things_lie_within_the_picture_and_leave_each_other_visible() -> None:
    for index in range(100):
        plan = plan_scene(index, MIX)
        bottoms = [placed.box[3] for placed in plan.things]
        assert bottoms == sorted(bottoms)  # nearer things are painted later
        for placed in plan.things:
            x, y = placed.centre
            assert 0 < x < plan.width
            assert 0 < y < plan.height
        for number, one in enumerate(plan.things):
            for other in plan.things[:number]:
                if one.crowd or other.crowd:
                    continue
                sides = [max(0, min(one.box[i + 2], other.box[i + 2]) - max(one.box[i], other.box[i])) for i in (0, 1)]
                assert sides[0] * sides[1] <= 0.4 * min(one.size, other.size) ** 2


def test_later_things_hide_earlier_ones() -> None:
    plan = plan_scene(0, MIX)
    square = replace(plan.things[0], thing=parse_thing("plain red square"), centre=(0.4, 0.4), size=0.4)
    below, above = replace(square, number=0), replace(square, number=1, centre=(0.5, 0.4))
    both = render_scene(replace(plan, things=(below, above)), 100)
    first = render_scene(replace(plan, things=(below,)), 100)
    second = render_scene(replace(plan, things=(above,)), 100)
    np.testing.assert_array_equal(both.thing_map == 2, second.thing_map == 1)
    np.testing.assert_array_equal(both.thing_map == 1, (first.thing_map == 1) & (second.thing_map == 0))
    assert both.areas == (first.areas[0], second.areas[0])


def test_pixels_show_the_things_where_the_map_says() -> None:
    plan = replace(plan_scene(0, MIX), style="plain", condition="", grounds=("snow", "marble"))
    placed = replace(plan.things[0], thing=parse_thing("plain red circle"), centre=(0.5, 0.35), size=0.4)
    scene = render_scene(replace(plan, things=(placed,)), 120)
    red, green, _ = scene.pixels.astype(int).transpose(2, 0, 1)
    assert ((red - green > 80) == (scene.thing_map == 1)).mean() > 0.999


def test_frequencies_have_a_long_tail_and_novel_classes_are_rare_in_training() -> None:
    def count(split: str) -> list[int]:
        mix = class_mix(things("base")[:30], things("novel")[:10], split)
        labels = [placed.label for i in range(1500) for placed in plan_scene(i, mix, split=split).things]
        found = Counter(labels)
        return [found[label] for label in range(40)]

    train, val = count("train"), count("val")
    assert max(train[:30]) > 4 * sorted(train[:30])[5]
    assert sum(train[30:]) / 10 < 0.35 * sum(train[:30]) / 30
    assert min(train[30:]) > 0
    assert sum(val[30:]) / 10 == pytest.approx(sum(val[:30]) / 30, rel=0.2)
    assert MIX.things[30:] == things("novel")[:10]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="unknown split of scenes 'test'; choose one of train, val"):
        plan_scene(0, MIX, split="test")
    with pytest.raises(InputError, match="scenes need at least one base class"):
        class_mix((), things("novel"))


def test_one_class_is_enough() -> None:
    mix = ClassMix((parse_thing("plain red star"),), (1.0,))
    assert {placed.label for index in range(30) for placed in plan_scene(index, mix).things} == {0}
