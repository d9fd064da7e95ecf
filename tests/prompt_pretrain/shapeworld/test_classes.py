from itertools import combinations

import pytest

from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld import class_names, parse_thing, things
from prompt_pretrain.shapeworld.classes import COLOURS, PATTERNS, SHAPES, Thing, class_counts


def test_the_world_has_1600_base_and_400_novel_classes():
    base, novel, everything = (class_names(split) for split in ("base", "novel", "all"))
    assert (len(base), len(novel)) == (1600, 400)
    assert everything == base + novel
    assert len(set(everything)) == 2000


def test_label_order_is_pinned():
    # Written worlds, prompts and the packaged CLIP rely on it: a change would silently mislabel them.
    assert class_names("base")[:3] == ("dotted brown fish", "zigzag red house", "checkered purple hexagon")
    assert class_names("novel")[:3] == ("checkered red drop", "ringed pink cloud", "zigzag black leaf")


def test_every_value_and_every_pair_of_values_occurs_among_base_classes():
    base = {(t.pattern, t.colour, t.shape) for t in things("base")}
    values = (PATTERNS, COLOURS, SHAPES)
    for first, second in combinations(range(3), 2):
        pairs = {(thing[first], thing[second]) for thing in base}
        assert len(pairs) == len(values[first]) * len(values[second])


def test_another_seed_gives_another_split():
    assert set(class_names("base", seed=1)) != set(class_names("base"))
    assert set(class_names("all", seed=1)) == set(class_names("all"))


def test_numbers_are_distinct_and_independent_of_the_order():
    assert sorted(thing.number for thing in things("all")) == list(range(2000))
    assert Thing("plain", "red", "square").number == 1


def test_counts_have_a_long_tail_with_the_mean_asked_for():
    counts = sorted(class_counts(things("base"), 16), reverse=True)
    assert sum(counts) == pytest.approx(16 * 1600, rel=0.02)
    assert counts[0] > 10 * counts[-1] > 0
    head = sum(counts[:160]) / sum(counts)
    assert head > 0.25  # a tenth of the classes holds more than a quarter of the images
    assert min(class_counts(things("base")[:50], 2)) == 2


def test_frequency_does_not_follow_the_label_order():
    counts = class_counts(things("base"), 16)
    assert abs(sum(counts[:800]) / sum(counts) - 0.5) < 0.05


def test_names_parse_back():
    for thing in things("novel")[:20]:
        assert parse_thing(thing.name.replace(" ", "_")) == thing
    with pytest.raises(InputError, match="'striped red car' is no ShapeWorld class"):
        parse_thing("striped red car")


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="unknown ShapeWorld split 'seen'; choose one of base, novel, all"):
        things("seen")
    with pytest.raises(InputError, match="found 1 images per class, expected at least 2"):
        class_counts(things("base"), 1)
