import errno
import logging

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from prompt_pretrain.classification.images import ImageBatch, ImageDataset, ImageError, make_loader, open_image
from prompt_pretrain.classification.items import ImageItem
from prompt_pretrain.classification.transforms import eval_transform, train_transform
from prompt_pretrain.errors import InputError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
AUGMENT = train_transform(["random_resized_crop", "random_flip", "randaugment2", "normalize"], 16, MEAN, STD)
PLAIN = eval_transform(16, MEAN, STD)


@pytest.fixture
def items(tmp_path, make_class) -> tuple[ImageItem, ...]:
    folder = make_class(tmp_path / "class", 7)
    return tuple(ImageItem(str(folder / f"{i}.png"), i % 3) for i in range(7))


@pytest.fixture
def damaged(items) -> tuple[ImageItem, ...]:
    for i in (2, 5):
        with open(items[i].path, "r+b") as file:
            file.truncate(100)
    return items


def load_all(dataset, batches, **options) -> list[ImageBatch]:
    return list(make_loader(dataset, batches, **options))


def test_samples_are_transformed_images(items):
    views, label, index, ok = ImageDataset(items, PLAIN)[4]
    assert (label, index, ok) == (1, 4, True)
    assert_close(views, PLAIN(open_image(items[4].path), torch.Generator())[None])


def test_views_are_drawn_independently_and_anew_in_every_epoch(items):
    dataset = ImageDataset(items, AUGMENT, views=3, seed=1)
    first = dataset[0][0]
    assert first.shape == (3, 3, 16, 16)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, dataset[0][0])
    dataset.set_epoch(1)
    assert not torch.equal(first, dataset[0][0])
    dataset.set_epoch(0)
    assert torch.equal(first, dataset[0][0])
    # Fewer views are the first ones of more; another seed gives others.
    assert torch.equal(first[:2], ImageDataset(items, AUGMENT, views=2, seed=1)[0][0])
    assert not torch.equal(first, ImageDataset(items, AUGMENT, views=3, seed=2)[0][0])


def test_batches_are_view_major_and_do_not_depend_on_workers_or_global_state(items):
    dataset = ImageDataset(items, AUGMENT, views=2, seed=5)
    batches = [np.array([3, 0, 6]), np.array([1, 2])]
    state = torch.get_rng_state()
    alone = load_all(dataset, batches)
    parallel = load_all(dataset, batches, num_workers=2)
    assert torch.equal(state, torch.get_rng_state())
    for one, other, batch in zip(alone, parallel, batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert one.indices.tolist() == batch.tolist()
        assert one.labels.tolist() == [i % 3 for i in batch]
        for view in range(2):
            for row, index in enumerate(batch):
                assert torch.equal(one.images.flatten(0, 1)[view * len(batch) + row], dataset[index][0][view])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damaged_images_are_skipped_counted_and_logged_once(damaged, num_workers, caplog):
    dataset = ImageDataset(damaged, PLAIN, views=2)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            batches = load_all(dataset, [[1, 2, 3], [4, 5, 6]], num_workers=num_workers)
    assert [batch.ok.tolist() for batch in batches] == [[True, False, True]] * 2
    assert (batches[0].images[:, 1] == 0).all()
    kept = batches[0].readable()
    assert kept.indices.tolist() == [1, 3]
    assert torch.equal(kept.images, batches[0].images[:, [0, 2]])
    assert sorted(dataset.corrupt) == [2, 5]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith(f"skipped {damaged[2].path}: damaged") and messages[0].endswith("(1 skipped so far)")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damaged_images_can_be_an_error(damaged, num_workers):
    dataset = ImageDataset(damaged, PLAIN, on_corrupt="raise")
    with pytest.raises(ImageError, match=f"^{damaged[2].path}: damaged"):
        load_all(dataset, [[1, 2, 3]], num_workers=num_workers)


def test_whole_batches_are_not_copied(items):
    (batch,) = load_all(ImageDataset(items, PLAIN), [[0, 1]])
    assert batch.readable() is batch


def test_no_batches_start_no_workers(items):
    assert load_all(ImageDataset(items, PLAIN), [], num_workers=4) == []


def test_bad_options():
    with pytest.raises(InputError, match="at least 1 view, got 0; see DATALOADER.K_TRANSFORMS"):
        ImageDataset((), PLAIN, views=0)
    with pytest.raises(ValueError, match="on_corrupt must be"):
        ImageDataset((), PLAIN, on_corrupt="ignore")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_folder_that_vanishes_stops_instead_of_being_skipped(items, tmp_path, num_workers):
    (tmp_path / "class" / "1.png").unlink()  # one that was deleted is skipped, as are damaged ones
    dataset = ImageDataset(items, PLAIN)
    (batch,) = load_all(dataset, [[0, 1]], num_workers=num_workers)
    assert batch.ok.tolist() == [True, False]
    (tmp_path / "class").rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"0.png: No such file or directory: .*class cannot be reached; mount or mend"):
        load_all(dataset, [[0, 1]], num_workers=num_workers)
    assert list(dataset.corrupt) == [1]


def test_device_errors_are_no_fault_of_the_image(items, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(InputError, match="Stale file handle: .*class cannot be reached"):
        ImageDataset(items, PLAIN).load(0)
