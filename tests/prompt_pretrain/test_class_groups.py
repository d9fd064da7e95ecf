"""Synonyms, background words and parents."""

import json
from pathlib import Path

import pytest
import torch

from prompt_pretrain.class_groups import BACKGROUND, ClassGroups, read_parents
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import Vocabulary, load_vocabulary

TYPED = "car|automobile,dog,cat"


def test_typed_synonyms_are_names_of_one_class(tmp_path: Path):
    groups = ClassGroups.of(load_vocabulary(TYPED))
    assert groups.names == ("car", "dog", "cat", "automobile") and groups.members == (0, 1, 2, 0)
    assert groups.class_names == groups.reported_names == ("car", "dog", "cat")
    (tmp_path / "words.txt").write_text(TYPED.replace(",", "\n"))
    assert ClassGroups.of(load_vocabulary(tmp_path / "words.txt")) == groups
    assert ClassGroups.of(load_vocabulary(TYPED), synonyms=False).names == ("car", "dog", "cat")
    with pytest.raises(InputError, match="the comma list: 'car|' has an empty name"):
        load_vocabulary("car|,dog")


def test_a_shared_name_counts_for_the_class_that_is_called_so():
    shared = Vocabulary("v", ("bow", "weapon"), synonyms=(("bow", "ribbon"), ("weapon", "bow", "ribbon")))
    groups = ClassGroups.of(shared)
    assert dict(zip(groups.names, groups.members, strict=True)) == {"bow": 0, "weapon": 1, "ribbon": 0}
    lvis = ClassGroups.of(load_vocabulary("lvis"))
    assert len(lvis.class_names) == 1203 and len(lvis.names) > 1800 and len(set(lvis.names)) == len(lvis.names)


def test_scores_of_a_class_are_the_best_or_the_sum_of_its_names():
    scores = torch.tensor([[0.1, 0.5], [0.2, 0.1], [0.3, 0.2], [0.6, 0.2]])  # car, dog, cat, automobile
    groups = ClassGroups.of(load_vocabulary(TYPED))
    torch.testing.assert_close(groups.aggregate(scores), torch.tensor([[0.6, 0.5], [0.2, 0.1], [0.3, 0.2]]))
    assert torch.equal(groups.aggregate(scores.t(), dim=1), groups.aggregate(scores).t())
    # The best class of a pixel is the class of its best name.
    assert torch.equal(groups.aggregate(scores).argmax(0), groups.class_of(scores.argmax(0)))
    summed = ClassGroups.of(load_vocabulary(TYPED), aggregation="sum").aggregate(scores)
    torch.testing.assert_close(summed, torch.tensor([[0.7, 0.7], [0.2, 0.1], [0.3, 0.2]]))


def test_background_words_are_one_class_at_the_end():
    groups = ClassGroups.of(["car", "dog"], background=("wall", "floor", "Wall"))
    assert groups.names == ("car", "dog", "wall", "floor") and groups.members == (0, 1, 2, 2)
    assert groups.class_names == ("car", "dog", BACKGROUND) and groups.reported_names == ("car", "dog")
    with pytest.raises(InputError, match="background word 'dog' is a name of class 'dog'"):
        ClassGroups.of(["car", "dog"], background=("dog",))
    with pytest.raises(InputError, match="has a class 'background' already"):
        ClassGroups.of(["car", "background"], background=("wall",))
    with pytest.raises(InputError, match="background words: class 0 has the name ' '"):
        ClassGroups.of(["car"], background=(" ",))


def test_parents_stand_for_their_children():
    groups = ClassGroups.of(load_vocabulary(TYPED), background=("wall",))
    pets = groups.with_parents({"pet": ("dog", "cat")})
    assert pets.class_names == ("car", "pet", BACKGROUND)
    found = dict(zip(pets.names, (pets.class_names[member] for member in pets.members), strict=True))
    assert found == {"car": "car", "automobile": "car", "dog": "pet", "cat": "pet", "wall": BACKGROUND}
    # A parent that is a class itself, written in another case and with underscores.
    own = ClassGroups.of(["pet_animal", "dog", "tree"]).with_parents({"Pet animal": ("DOG",)})
    assert own.class_names == ("Pet animal", "tree") and own.members == (0, 0, 1)


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ({"pet": ("dogs",)}, "'dogs', a child of 'pet', is no class of the vocabulary; did you mean 'dog'"),
        ({"pet": ("dog",), "beast": ("dog",)}, "class 'dog' has two parents, 'pet' and 'beast'"),
        ({"pet": (BACKGROUND,)}, "'background', a child of 'pet', is no class"),
        ({" ": ("dog",)}, "the parents: class 0 has the name ' '"),
    ],
)
def test_parents_that_do_not_fit_are_errors(parents: dict[str, tuple[str, ...]], message: str):
    with pytest.raises(InputError, match=message):
        ClassGroups.of(["dog", "cat"], background=("wall",)).with_parents(parents)


def test_parents_are_typed_or_read_from_files(tmp_path: Path):
    expected = {"vehicle": ("car", "bus"), "pet": ("dog",)}
    assert read_parents("vehicle: car, bus; pet: dog;") == expected
    (tmp_path / "p.txt").write_text("# rules\nvehicle: car, bus\n\npet: dog\n")
    (tmp_path / "p.json").write_text(json.dumps(expected))
    assert read_parents(str(tmp_path / "p.txt")) == read_parents(str(tmp_path / "p.json")) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nix.json", "no file of parents nix.json"),
        ("vehicle car", "'vehicle car' names no children"),
        ("vehicle:", "'vehicle:' names no children"),
        ("a: b; a: c", "the parent 'a' is given twice"),
        (";", "no parents"),
    ],
)
def test_unusable_parents_are_errors(spec: str, message: str):
    with pytest.raises(InputError, match=message):
        read_parents(spec)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": "b"}', '{"a": []}', "{}"])
def test_unusable_json_of_parents_is_an_error(tmp_path: Path, content: str):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(InputError, match="p.json"):
        read_parents(str(tmp_path / "p.json"))


def test_an_unknown_aggregation_is_an_error():
    with pytest.raises(InputError, match="aggregation is 'mean'; expected one of max, sum"):
        ClassGroups.of(["car"], aggregation="mean")
