"""Which classes a batch is about."""

import time

import pytest

import third_party  # noqa: F401  (makes detectron2 importable)
from prompt_pretrain.errors import InputError
from segmentation.batch_vocabulary import BatchVocabulary
from tests.segmentation_recipes import registered_data_sets

SETS = {
    "vocabulary_flags": {"stuff_classes": [" sand", "red star "], "trainable_flag": [1, 0]},
    "vocabulary_plain": {"stuff_classes": ["sea"]},
    "vocabulary_wrong": {"stuff_classes": ["a", "b"], "trainable_flag": [1]},
    "vocabulary_empty": {},
}


def of(vocabulary: BatchVocabulary, *names: str) -> tuple[list[str], list[float]]:
    found, seen = vocabulary.of([{"meta": {"dataset_name": name}} for name in names])
    return found, seen.tolist()


def test_names_come_from_the_data_set_or_are_given() -> None:
    vocabulary = BatchVocabulary()
    with registered_data_sets(SETS):
        assert of(vocabulary, "vocabulary_flags", "vocabulary_flags") == (["sand", "red star"], [1, 0])
        assert of(vocabulary, "vocabulary_plain") == (["sea"], [0])  # no flag: nothing is seen
        vocabulary.set([" cat ", "dog"], [0, 1])
        assert of(vocabulary, "vocabulary_plain") == (["cat", "dog"], [0, 1])
        vocabulary.set(["cat"])
        assert vocabulary.of([{}])[1].tolist() == [0]
        vocabulary.set(None)
        assert of(vocabulary, "vocabulary_plain") == (["sea"], [0])


def test_errors_of_data_sets() -> None:
    vocabulary = BatchVocabulary()
    with registered_data_sets(SETS):
        with pytest.raises(
            InputError, match="one data set in meta.*'vocabulary_flags', 'vocabulary_plain'.*set_classes"
        ):
            of(vocabulary, "vocabulary_flags", "vocabulary_plain")
        with pytest.raises(InputError, match=r"found \['None'\]"):
            vocabulary.of([{}])
        with pytest.raises(InputError, match="vocabulary_wrong has 2 stuff_classes but 1 entries in trainable_flag"):
            of(vocabulary, "vocabulary_wrong")
        with pytest.raises(InputError, match="vocabulary_empty has no stuff_classes"):
            of(vocabulary, "vocabulary_empty")


def test_errors_of_given_names() -> None:
    vocabulary = BatchVocabulary()
    with pytest.raises(InputError, match="repeat 'cat'; give at least one, none of them empty or repeated"):
        vocabulary.set(["cat", "dog", " cat"])
    for names in ([], [""]):
        with pytest.raises(InputError, match="give at least one"):
            vocabulary.set(names)
    with pytest.raises(InputError, match="1 flags of seen classes for 2 classes"):
        vocabulary.set(["cat", "dog"], [1])


def test_huge_vocabularies_are_set_at_once() -> None:
    started = time.perf_counter()
    BatchVocabulary().set([f"class {index}" for index in range(22_000)])
    assert time.perf_counter() - started < 2
