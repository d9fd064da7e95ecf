from dataclasses import replace

import numpy as np
import pycocotools.mask as mask_util
import pytest

from prompt_pretrain.shapeworld import parse_thing, things
from prompt_pretrain.shapeworld.grounds import GROUNDS
from prompt_pretrain.shapeworld.scene_files import describe_things
from prompt_pretrain.shapeworld.scene_masks import (
    is_recognisable,
    label_map,
    polygons,
    run_lengths,
    tight_box,
    visible_mask,
)
from prompt_pretrain.shapeworld.scenes import Scene, class_mix, plan_scene, render_scene

MIX = class_mix(things("base")[:30], things("novel")[:10])
GROUND_IDS = {ground: 100 + number for number, ground in enumerate(GROUNDS)}


def scenes(count: int, size: int = 80) -> list[Scene]:
    return [render_scene(plan_scene(index, MIX), size) for index in range(count)]


def filled(parts: list[list[int]], mask: np.ndarray) -> np.ndarray:
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(parts, *mask.shape))).astype(bool)


def random_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    blobs = [rng.random((rng.integers(1, 12), rng.integers(1, 12))) < share for share in np.linspace(0.2, 0.95, 60)]
    frame = np.ones((9, 11), bool)
    frame[2:7, 3:5] = frame[2:4, 7:9] = frame[5, 8] = False
    return [frame, np.ones((1, 1), bool), *(blob for blob in blobs if blob.any())]


@pytest.mark.parametrize("mask", random_masks())
def test_polygons_and_run_lengths_give_the_mask_back(mask: np.ndarray) -> None:
    parts = polygons(mask)
    np.testing.assert_array_equal(filled(parts, mask), mask)
    assert all(len(part) >= 6 and len(part) % 2 == 0 for part in parts)
    lengths = mask_util.frPyObjects(run_lengths(mask), *mask.shape)
    np.testing.assert_array_equal(mask_util.decode(lengths).astype(bool), mask)


def test_polygons_have_no_needless_points() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:8, 4:19] = True
    assert sorted(zip(*[iter(polygons(mask)[0])] * 2, strict=True)) == [(4, 3), (4, 8), (19, 3), (19, 8)]


def test_boxes_are_tight_around_what_is_visible() -> None:
    for scene in scenes(40):
        for described in describe_things(scene):
            x, y, width, height = described["box"]
            if described["crowd"]:
                lengths = mask_util.frPyObjects(described["run_lengths"], *scene.thing_map.shape)
                mask = mask_util.decode(lengths).astype(bool)
            else:
                mask = filled(described["polygons"], scene.thing_map)
            rows, columns = np.nonzero(mask)
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert described["area"] == mask.sum()


def test_label_maps_agree_with_masks() -> None:
    for scene in scenes(40):
        values = label_map(scene, range(40), GROUND_IDS)
        assert values.dtype == np.uint8
        expected = np.array([GROUND_IDS[ground] for ground in scene.plan.grounds])[scene.ground_map]
        expected[scene.thing_map > 0] = 255
        for position, placed in enumerate(scene.plan.things):
            if is_recognisable(scene, position):
                expected[visible_mask(scene, [position])] = placed.label
        np.testing.assert_array_equal(values, expected)


def test_what_is_hidden_or_tiny_is_ignored() -> None:
    plan = plan_scene(0, MIX)
    square = replace(plan.things[0], thing=parse_thing("plain red square"), centre=(0.5, 0.4), size=0.4)
    hidden = replace(plan, things=(replace(square, label=7, size=0.3), replace(square, label=8)))
    scene = render_scene(hidden, 100)
    assert not is_recognisable(scene, 0)
    assert [described["label"] for described in describe_things(scene)] == [8]
    scene = render_scene(replace(plan, things=(replace(square, label=7, size=0.02),)), 100)
    assert (scene.thing_map == 1).any()
    assert describe_things(scene) == []
    values = label_map(scene, range(40), GROUND_IDS)
    assert set(values[scene.thing_map == 1]) == {255}


def test_label_maps_of_many_classes_and_of_few_grounds() -> None:
    scene = next(scene for scene in scenes(20) if scene.plan.grounds[0] == "sky")
    wide = label_map(scene, range(1000, 1040), {"sky": 7}, ignore=65535)
    assert wide.dtype == np.uint16
    assert set(wide[(scene.thing_map == 0) & (scene.ground_map == 0)]) == {7}
    assert set(wide[(scene.thing_map == 0) & (scene.ground_map > 0)]) == {65535}


def test_a_crowd_is_described_as_one() -> None:
    scene = next(
        render_scene(plan, 120)
        for plan in (plan_scene(index, MIX) for index in range(200))
        if any(placed.crowd for placed in plan.things)
    )
    members = [position for position, placed in enumerate(scene.plan.things) if placed.crowd]
    (crowd,) = [described for described in describe_things(scene) if described["crowd"]]
    assert len(members) == 9
    assert crowd["area"] == np.isin(scene.thing_map, np.array(members) + 1).sum()
    assert crowd["box"] == tight_box(visible_mask(scene, members))
    labels = [described["label"] for described in describe_things(scene) if not described["crowd"]]
    assert crowd["label"] not in labels
