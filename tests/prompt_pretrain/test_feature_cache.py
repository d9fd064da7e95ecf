import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from prompt_pretrain import feature_cache
from prompt_pretrain.classification.images import ImageDataset, ImageError
from prompt_pretrain.classification.items import ImageItem
from prompt_pretrain.classification.transforms import eval_transform, train_transform
from prompt_pretrain.errors import InputError
from prompt_pretrain.feature_cache import FeatureCache

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
AUGMENT = train_transform(["random_resized_crop", "random_flip", "normalize"], 8, MEAN, STD)
PLAIN = eval_transform(8, MEAN, STD)


class TinyClip:
    """An image tower with what the cache asks of a CLIP; counts the images that it encodes."""

    clip_id, precision, dtype, embed_dim = "tiny", "fp32", torch.float32, 6
    device = torch.device("cpu")

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.tower = nn.Linear(3 * 8 * 8, 6).requires_grad_(False)
        self.tower.weight *= scale
        self.image_fingerprint = f"tower {seed}"
        self.encoded = 0
        self.before: Callable[[], None] = lambda: None

    def encode_image(self, images: Tensor) -> Tensor:
        self.before()
        self.encoded += len(images)
        return self.tower(images.flatten(1))


@pytest.fixture
def items(tmp_path) -> tuple[ImageItem, ...]:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(10):
        Image.fromarray(np.random.RandomState(i).randint(0, 256, (9, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tuple(ImageItem(str(folder / f"{i}.png"), i % 3) for i in range(10))


@pytest.fixture
def build(tmp_path, items):
    def run(clip: TinyClip, images=items, transform=AUGMENT, **options) -> FeatureCache:
        options = {"views": 2, "folder": tmp_path / "features", "batch_size": 4, "seed": 1, **options}
        return FeatureCache.build(clip, images, transform, **options)  # type: ignore[arg-type]

    return run


def expected_features(items, transform, views: int, seed: int) -> np.ndarray:
    dataset = ImageDataset(items, transform, views=views, seed=seed)
    rows = [TinyClip().encode_image(dataset[i][0]) for i in range(len(items))]
    return torch.stack(rows).numpy()


def test_features_are_those_of_the_image_tower(build, items, tmp_path):
    clip = TinyClip()
    cache = build(clip)
    assert cache.features.shape == (10, 2, 6)
    assert cache.features.dtype == np.float16
    assert isinstance(cache.features, np.memmap)
    np.testing.assert_allclose(cache.features, expected_features(items, AUGMENT, 2, 1), rtol=1e-3, atol=1e-3)
    assert cache.labels.tolist() == [i % 3 for i in range(10)]
    assert cache.valid.all()
    assert clip.encoded == 20
    assert not list((tmp_path / "features").glob("*.partial"))
    with pytest.raises(ValueError, match="read-only"):
        cache.features[0] = 0


def test_a_second_run_encodes_nothing(build):
    first = build(TinyClip())
    clip = TinyClip()
    again = build(clip, num_workers=2, batch_size=3)
    assert clip.encoded == 0
    assert np.array_equal(first.features, again.features)


def test_workers_do_not_change_the_numbers(build, tmp_path):
    alone = build(TinyClip())
    assert np.array_equal(alone.features, build(TinyClip(), folder=tmp_path / "other", num_workers=2).features)


def test_the_key_covers_all_that_the_numbers_depend_on(build, items):
    def key(**options) -> str:
        return build(options.pop("clip", TinyClip()), **options).folder.name

    os.utime(items[0].path, ns=(0, 10**18))
    keys = [
        key(),
        key(clip=TinyClip(seed=1)),
        key(images=items[:9]),
        key(images=items[::-1]),
        key(transform=PLAIN),
        key(views=1),
        key(seed=2),
        key(content_hash=True),
    ]
    assert len(set(keys)) == len(keys)
    relabelled = tuple(ImageItem(item.path, 5) for item in items)
    assert key(images=relabelled) == keys[0]
    assert key(transform=PLAIN, seed=7) == keys[4]  # nothing random in it
    os.utime(items[0].path, ns=(0, 2 * 10**18))
    assert key() != keys[0]
    assert key(content_hash=True) == keys[-1]


def test_archives_are_part_of_the_key(build, tmp_path, items):
    import tarfile

    archive = tmp_path / "n1.tar"
    with tarfile.open(archive, "w") as file:
        for item in items[:3]:
            file.add(item.path, arcname=os.path.basename(item.path))
    members = tuple(ImageItem(f"{archive}::{i}.png", i) for i in range(3))
    first = build(TinyClip(), images=members, transform=PLAIN)
    assert np.array_equal(first.features, build(TinyClip(), images=items[:3], transform=PLAIN).features)
    os.utime(archive, ns=(0, 10**18))
    assert build(TinyClip(), images=members, transform=PLAIN).folder != first.folder


@pytest.mark.parametrize("save_every", [0.0, 1000.0])
def test_a_killed_process_is_continued_bit_for_bit(build, tmp_path, monkeypatch, save_every):
    monkeypatch.setattr(feature_cache, "_SAVE_EVERY_SECONDS", save_every)
    whole = build(TinyClip(), folder=tmp_path / "whole")

    def work_and_die() -> None:
        clip = TinyClip()
        clip.before = lambda: os._exit(9) if clip.encoded >= 12 else None
        build(clip)

    process = multiprocessing.get_context("fork").Process(target=work_and_die)
    process.start()
    process.join()
    assert process.exitcode == 9
    (partial,) = (tmp_path / "features").glob("*.partial")
    assert not (tmp_path / "features" / partial.stem).exists()
    clip = TinyClip()
    cache = build(clip)
    assert clip.encoded == (12 if save_every == 0 else 20)
    assert np.array_equal(cache.features, whole.features)
    assert not partial.exists()


def test_an_error_keeps_what_was_encoded(build):
    clip = TinyClip()

    def fail() -> None:
        if clip.encoded >= 8:
            raise RuntimeError("out of memory")

    clip.before = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        build(clip)
    clip = TinyClip()
    build(clip)
    assert clip.encoded == 12


def test_unusable_images_are_marked(build, items, caplog):
    for i in (3, 4):
        Path(items[i].path).write_bytes(b"garbage")
    os.unlink(items[9].path)
    with caplog.at_level(logging.WARNING):
        cache = build(TinyClip())
    assert np.flatnonzero(~cache.valid).tolist() == [3, 4, 9]
    assert (cache.features[[3, 4, 9]] == 0).all()
    assert (cache.features[cache.valid] != 0).any(axis=(1, 2)).all()
    assert f"skipped {items[9].path}: No such file" in caplog.text
    assert f"3 of 10 images cannot be read and are left out, first {items[3].path}" in caplog.text
    with pytest.raises(InputError, match=r"3.png cannot be read \(and 2 more images\); mend or remove it, then remove"):
        build(TinyClip(), on_corrupt="raise")


def test_unusable_images_can_be_an_error_at_once(build, items, tmp_path):
    Path(items[5].path).write_bytes(b"garbage")
    with pytest.raises(ImageError, match="5.png: damaged or not an image"):
        build(TinyClip(), on_corrupt="raise")
    assert len(list((tmp_path / "features").glob("*.partial"))) == 1


def test_no_usable_image_is_an_error(build, items, tmp_path):
    for item in items:
        os.unlink(item.path)
    with pytest.raises(InputError, match="none of the 10 images can be read, the first is .*0.png; check DATASET.ROOT"):
        build(TinyClip())
    with pytest.raises(InputError, match="there are no images to encode"):
        build(TinyClip(), images=())
    assert not list((tmp_path / "features").glob("*.partial"))


@pytest.mark.parametrize("damage", ["truncate", "remove", "header"])
def test_a_damaged_cache_is_made_again(build, damage):
    first = build(TinyClip())
    features = np.array(first.features)
    if damage == "truncate":
        os.truncate(first.folder / "features.bin", 100)
    elif damage == "remove":
        (first.folder / "states.bin").unlink()
    else:
        (first.folder / "header.json").write_text("{")
    clip = TinyClip()
    assert np.array_equal(build(clip).features, features)
    assert clip.encoded == 20


def test_a_full_disk_is_told_before_the_work_with_the_bytes_needed(build, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    clip = TinyClip()
    message = (
        "features of 10 images in 2 views need 250 bytes in .*features, 100 are free; free some space, set FEATURE"
    )
    with pytest.raises(InputError, match=message):
        build(clip)
    assert clip.encoded == 0
    assert not list((tmp_path / "features").glob("*.partial"))


def test_features_beyond_float16_are_an_error(build):
    with pytest.raises(InputError, match=r"features of .*0.png exceed float16 or are not numbers; use PREC fp32"):
        build(TinyClip(scale=1e9))


def test_a_progress_bar_only_on_request(build, capsys):
    build(TinyClip())
    assert capsys.readouterr().err == ""
    build(TinyClip(), seed=2, progress=True)
    assert "image features: 100%" in capsys.readouterr().err


def start_all(target, arguments) -> dict:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=target, args=(*each, results)) for each in arguments]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    return found


def test_independent_processes_encode_once(build):
    def work(number: int, results) -> None:
        clip = TinyClip()
        cache = build(clip)
        results.put((number, (clip.encoded, np.array(cache.features))))

    found = start_all(work, [(number,) for number in range(3)])
    assert sorted(encoded for encoded, _ in found.values()) == [0, 0, 20]
    assert all(np.array_equal(features, found[0][1]) for _, features in found.values())


@pytest.mark.parametrize("broken", [False, True])
def test_processes_of_one_run_share_the_work(build, items, tmp_path, broken):
    alone = build(TinyClip(), folder=tmp_path / "alone")
    if broken:
        Path(items[9].path).write_bytes(b"garbage")  # in the last process's share

    def work(rank: int, results) -> None:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=2)
        clip = TinyClip()
        try:
            cache = build(clip, on_corrupt="raise")
            results.put((rank, (clip.encoded, np.array(cache.features))))
        except InputError as error:
            results.put((rank, str(error)))
        finally:
            dist.destroy_process_group()

    found = start_all(work, [(rank,) for rank in range(2)])
    if broken:
        assert found[0] == found[1]
        assert "9.png: damaged" in found[0]
    else:
        assert sum(encoded for encoded, _ in found.values()) == 20
        assert all(encoded > 0 for encoded, _ in found.values())
        assert all(np.array_equal(features, alone.features) for _, features in found.values())
