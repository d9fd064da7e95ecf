import logging
import multiprocessing
import os
from pathlib import Path

import pytest
import torch.distributed as dist

from prompt_pretrain.classification import registry
from prompt_pretrain.classification.items import ClassificationData, ImageItem
from prompt_pretrain.classification.registry import dataset_names, load_classification_data, register_dataset
from prompt_pretrain.errors import InputError


@pytest.fixture
def folder(tmp_path, make_class) -> Path:
    for label, name in enumerate(("a", "b", "c")):
        make_class(tmp_path / "train" / name, 9 - 3 * label)
        make_class(tmp_path / "val" / name, 5)
    return tmp_path


def test_few_shot_held_out_and_half_of_the_classes_combine(folder):
    full = load_classification_data("ImageFolder", folder)
    assert full.class_counts == (9, 6, 3)
    data = load_classification_data("ImageFolder", folder, num_shots=3, seed=1, held_out=2, subsample_classes="base")
    assert data.class_names == ("a", "b")
    assert data.class_counts == (9, 6)
    assert [item.label for item in data.train] == [0] * 3 + [1] * 3
    assert [item.label for item in data.val] == [0] * 3 + [1] * 3
    assert len(data.test) == 10
    assert [item.label for item in data.held_out] == [0] * 2 + [1] * 2
    assert not set(data.held_out) & set(data.train)
    assert (folder / "split_fewshot" / "shot_3-seed_1.json").exists()
    # The saved split does not become a class, and gives the same images again.
    again = load_classification_data("ImageFolder", folder, num_shots=3, seed=1, held_out=2, subsample_classes="base")
    assert [list(again.train), list(again.held_out)] == [list(data.train), list(data.held_out)]


def test_imagenet_sets_keep_their_validation_images(tmp_path, make_class):
    for wnid in ("n02084071", "n02691156"):
        make_class(tmp_path / "imagenet21k_resized/imagenet21k_train" / wnid, 5)
        make_class(tmp_path / "imagenet21k_resized/imagenet21k_val" / wnid, 3)
    data = load_classification_data("ImageNet21K", tmp_path, num_shots=2)
    assert (len(data.train), len(data.val)) == (4, 6)
    assert data.val is data.test


def test_test_images_can_be_had_without_training_images(folder, tmp_path, make_class):
    data = load_classification_data("ImageFolder", folder, test_only=True, subsample_classes="new")
    assert (data.class_names, data.class_counts, len(data.train), len(data.test)) == (("c",), (), 0, 5)
    make_class(tmp_path / "only/imagenet21k_resized/imagenet21k_val/n02691156", 3)
    data = load_classification_data("ImageNet21K", tmp_path / "only", test_only=True)
    assert (data.class_names, len(data.test)) == (("airplane",), 3)
    with pytest.raises(ValueError, match="test_only leaves no training images"):
        load_classification_data("ImageFolder", folder, test_only=True, num_shots=1)


def test_labels_of_a_test_set_count_all_training_classes(folder):
    for image in (folder / "val" / "a").iterdir():
        image.unlink()
    (folder / "val" / "a").rmdir()
    data = load_classification_data("ImageFolder", folder, test_only=True)
    assert data.class_names == ("a", "b", "c")
    assert {item.label for item in data.test} == {1, 2}


def test_ties_are_reported_with_the_ceiling(folder, caplog):
    (folder / "classnames.txt").write_text("a crane\nb dog\nc crane\n")
    with caplog.at_level(logging.WARNING):
        load_classification_data("ImageFolder", folder)
    assert "1 class names repeat an earlier one" in caplog.text
    assert "cannot exceed 66.7 %" in caplog.text


def test_a_class_without_training_images_is_an_error(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    def read(root, names_file, *, test_only):
        items = (ImageItem("/x", 0),)
        return ClassificationData("X", str(root), ("full", "bare"), items, items, items, (1, 0))

    register_dataset("Bare", read)
    with pytest.raises(InputError, match="class 'bare' of X in /r has no training images; add some"):
        load_classification_data("Bare", "/r")


def test_wrong_requests_are_errors(folder):
    with pytest.raises(InputError, match="unknown data set 'Imagenet21k' in DATASET.NAME; did you mean ImageNet21K?"):
        load_classification_data("Imagenet21k", folder)
    with pytest.raises(InputError, match="unknown data set 'xyz' in DATASET.NAME; expected one of ImageNet21K, "):
        load_classification_data("xyz", folder)
    for shots in (0, -2):
        with pytest.raises(InputError, match=f"NUM_SHOTS must be at least 1, or -1 for all images; got {shots}"):
            load_classification_data("ImageFolder", folder, num_shots=shots)
    with pytest.raises(InputError, match="unknown DATASET.SUBSAMPLE_CLASSES 'old'"):
        load_classification_data("ImageFolder", folder, subsample_classes="old")
    assert {"ImageNet21K", "ImageNet", "ImageFolder"} <= set(dataset_names())


def load_as_rank(rank: int, rendezvous: Path, roots: list[Path], results) -> None:
    os.environ["XDG_CACHE_HOME"] = str(rendezvous.parent / f"cache{rank}")
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        data = load_classification_data("ImageFolder", roots[rank], num_shots=2, seed=3)
        results.put((rank, [os.path.relpath(item.path, roots[rank]) for item in data.train]))
    except InputError as error:
        results.put((rank, str(error)))
    finally:
        dist.destroy_process_group()


def run_ranks(tmp_path: Path, roots: list[Path]) -> dict:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=load_as_rank, args=(r, tmp_path / "store", roots, results)) for r in range(2)]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(timeout=60)
    return found


def test_all_processes_get_the_same_subset(folder, tmp_path):
    found = run_ranks(tmp_path, [folder, folder])
    assert found[0] == found[1]
    assert len(found[0]) == 6


def test_an_error_on_one_process_reaches_all(folder, tmp_path):
    found = run_ranks(tmp_path, [folder, tmp_path / "nowhere"])
    assert "nowhere is not a folder" in found[0]
    assert found[0] == found[1]


def test_processes_with_different_images_are_told(folder, tmp_path, make_class):
    for name in ("a", "b", "c"):
        make_class(tmp_path / "other" / "train" / name, 3)
        make_class(tmp_path / "other" / "val" / name, 3)
    found = run_ranks(tmp_path, [folder, tmp_path / "other"])
    assert all("holds different images on the machines of this run" in text for text in found.values())
