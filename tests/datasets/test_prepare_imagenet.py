"""Preparation of ImageNet-LVIS folders and of ImageNet-21K in archives."""

import gzip

import numpy as np
import pytest

from detection.data.tar_dataset import DiskTarDataset
from prompt_pretrain.vocabulary import load_vocabulary
from tests.datasets.preparation_tools import Command, jpeg, write_tar

AIRPLANE, DOG, ORGANISM = "n02691156", "n02084071", "n00004475"  # LVIS 3, LVIS 378, not in LVIS


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Indexes of archives are cached in the user's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def lvis_command(tmp_path, monkeypatch, capsys):
    return Command("prepare_imagenet_lvis", tmp_path, monkeypatch, capsys)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command("prepare_imagenet21k", tmp_path, monkeypatch, capsys)


def test_the_997_classes(lvis_command):
    ids = lvis_command.module.lvis_ids()
    assert len(ids) == 997
    novel = {load_vocabulary("lvis_v1").ids[row] for row in load_vocabulary("lvis_v1").splits["novel"]}
    assert len(novel.intersection(ids.values())) == 277
    assert ids[AIRPLANE] == 3


def test_unpack(lvis_command):
    archives = lvis_command.root / "imagenet/ImageNet-21K"
    members = [
        (f"{AIRPLANE}_1.JPEG", jpeg(8, 6)),
        (f"deep/{AIRPLANE}_2.JPEG", gzip.compress(jpeg(8, 6))),
        ("../outside.JPEG", jpeg(8, 6)),
        (f"{AIRPLANE}_3.JPEG", gzip.compress(jpeg(8, 6))[:-9]),
    ]
    write_tar(archives / f"{AIRPLANE}.tar", members)
    output = lvis_command("unpack", "--skip-missing")
    assert "1 classes; 2 images unpacked, 0 were there, 1 are unreadable; 996 archives are missing" in output
    folder = lvis_command.root / "imagenet/ImageNet-LVIS" / AIRPLANE
    assert sorted(path.name for path in folder.iterdir()) == [f"{AIRPLANE}_1.JPEG", f"{AIRPLANE}_2.JPEG"]
    assert (folder / f"{AIRPLANE}_2.JPEG").read_bytes() == jpeg(8, 6)
    assert not list(lvis_command.root.rglob("outside*"))
    assert "0 images unpacked, 2 were there" in lvis_command("unpack", "--skip-missing")


def test_json_of_folders(lvis_command):
    folder = lvis_command.root / "imagenet/ImageNet-LVIS"
    for name, data in {
        f"{AIRPLANE}/b.JPEG": jpeg(8, 6),
        f"{AIRPLANE}/a.JPEG": jpeg(8, 6, orientation=6),
        f"{DOG}/c.JPEG": jpeg(5, 7),
        f"{DOG}/d.JPEG": b"no image",
        f"{DOG}/.hidden": b"",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert "3 images, 1 files are unreadable" in lvis_command("json", "--workers", 2)
    content = lvis_command.read("imagenet/annotations/imagenet_lvis_image_info.json")
    dog = next(row["id"] for row in content["categories"] if row["synset"] == "dog.n.01")
    assert content["images"] == [
        {"id": 1, "file_name": f"{DOG}/c.JPEG", "pos_category_ids": [dog], "width": 5, "height": 7},
        {"id": 2, "file_name": f"{AIRPLANE}/a.JPEG", "pos_category_ids": [3], "width": 6, "height": 8},
        {"id": 3, "file_name": f"{AIRPLANE}/b.JPEG", "pos_category_ids": [3], "width": 8, "height": 6},
    ]
    assert content["annotations"] == []
    assert {row["id"]: row["image_count"] for row in content["categories"] if row["image_count"]} == {3: 2, dog: 1}
    assert len(content["categories"]) == 1203


def test_lvis_errors(lvis_command):
    assert "lacks 997 of the 997 archives" in lvis_command.error("unpack", "--skip-missing")
    archives = lvis_command.root / "imagenet/ImageNet-21K"
    write_tar(archives / f"{AIRPLANE}.tar", [])
    assert "lacks 996 of the 997 archives, e.g. n00007846.tar" in lvis_command.error("unpack")
    (archives / f"{AIRPLANE}.tar").write_bytes(b"no archive" * 100)
    assert f"{AIRPLANE}.tar is not a tar archive" in lvis_command.error("unpack", "--skip-missing")
    assert "run the step unpack first" in lvis_command.error("json")
    assert "--workers must be positive" in lvis_command.error("json", "--workers", 0)
    folder = lvis_command.root / "imagenet/ImageNet-LVIS"
    (folder / AIRPLANE).mkdir(parents=True)
    assert "holds no readable image" in lvis_command.error("json")
    (folder / ORGANISM).mkdir()
    assert f"{ORGANISM} is named after none of the 997" in lvis_command.error("json")


@pytest.fixture
def archives(command):
    """Three archives, the second one empty; the last image is compressed, one is damaged."""
    folder = command.root / "imagenet/ImageNet-21K"
    long_name = "long/" * 30 + f"{DOG}_2.JPEG"
    write_tar(folder / f"{ORGANISM}.tar", [(f"{ORGANISM}_1.JPEG", jpeg(8, 6)), ("notes.txt", b"x" * 600)], format=0)
    write_tar(folder / f"{DOG}.tar", [(f"{DOG}_1.JPEG", b"garbage"), (long_name, jpeg(5, 7))], format=1)
    write_tar(folder / f"{AIRPLANE}.tar", [(f"{AIRPLANE}_1.JPEG", gzip.compress(jpeg(9, 4)))], format=2)
    write_tar(folder / "n02000000.tar", [])
    return folder


def test_tar_index(command, archives):
    assert "4 archives with 4 images" in command("tar-index", "--workers", 2)
    index = command.root / "imagenet/metadata-22k"
    files = np.load(index / "tar_files.npy")
    assert [name.split("/")[-1] for name in files] == [
        f"{ORGANISM}.tar",
        "n02000000.tar",
        f"{DOG}.tar",
        f"{AIRPLANE}.tar",
    ]
    offsets = np.load(index / "tarindex_npy" / f"{DOG}_offsets.npy")
    blocks = 1 + -(-len(jpeg(5, 7)) // 512)
    assert offsets.tolist() == [0, 2, 2 + 2 + blocks]  # garbage; then two blocks with the long name
    assert offsets.dtype == np.int64
    assert np.load(index / "tarindex_npy" / f"{DOG}_names.npy").tolist() == [f"{DOG}_1.JPEG", f"{DOG}_2.JPEG"]
    assert np.load(index / "tarindex_npy" / "n02000000_offsets.npy").tolist() == [0]
    dataset = DiskTarDataset(index / "tar_files.npy", index / "tarindex_npy")
    assert [(dataset[number][0].size, dataset[number][1]) for number in range(4)] == [
        ((8, 6), 0),
        ((224, 224), -1),
        ((5, 7), 2),
        ((9, 4), 3),
    ]


def test_block_offsets_of_the_reference(command):
    sizes = (676, 1096, 513)
    archive = write_tar(command.root / "a.tar", [(f"{number}.jpg", b"x" * size) for number, size in enumerate(sizes)])
    assert command.module.find_images(archive)[1].tolist() == [0, 3, 7, 10]


def test_image_info_and_merge(command, archives):
    (archives / "n02000000.tar").unlink()
    command("tar-index")
    assert "1 of 4 images are unreadable" in command("image-info", "--workers", 0)
    content = command.read("imagenet/annotations/imagenet-22k_image_info.json")
    assert [(row["id"], row["synset"]) for row in content["categories"]] == [
        (1, "organism.n.01"),
        (2, "dog.n.01"),
        (3, "airplane.n.01"),
    ]
    assert content["categories"][0]["synonyms"] == ["organism", "being"]
    assert content["images"][1:] == [
        {"id": 3, "pos_category_ids": [2], "tar_index": 2, "width": 5, "height": 7},
        {"id": 4, "pos_category_ids": [3], "tar_index": 3, "width": 9, "height": 4},
    ]
    content["images"] += [
        {"id": 8, "pos_category_ids": [3, 1, 3], "tar_index": 8, "width": 5, "height": 7},
        {"id": 9, "pos_category_ids": [], "tar_index": 9, "width": 5, "height": 7},
    ]
    command.write("imagenet/annotations/imagenet-22k_image_info.json", content)
    lvis = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    command.write("lvis/lvis_v1_train.json", lvis)
    command("merge-lvis")
    merged = command.read("imagenet/annotations/imagenet-22k_image_info_lvis-22k.json")
    dog = load_vocabulary("lvis_v1").class_names.index("dog") + 1
    assert [row["pos_category_ids"] for row in merged["images"]] == [[1204], [dog], [3], [3, 1204]]
    names = load_vocabulary("lvis_22k").class_names
    for rows in (merged["categories"], command.read("lvis/lvis_v1_train_lvis-22k.json")["categories"]):
        assert tuple(row["name"] for row in rows) == names
        assert [row["id"] for row in rows] == list(range(1, 22048))


def test_errors(command, archives):
    content = {"images": [], "annotations": [], "categories": [{"id": 4, "synset": "nothing.n.01"}]}
    command.write("imagenet/annotations/imagenet-22k_image_info.json", content)
    assert "category 4 has the synset 'nothing.n.01'" in command.error("merge-lvis")
    content |= {"images": [{"id": 2, "pos_category_ids": [9]}], "categories": [{"id": 4, "synset": "dog.n.01"}]}
    command.write("imagenet/annotations/imagenet-22k_image_info.json", content)
    assert "image 2 has the label 9, which the file does not list" in command.error("merge-lvis")
    command("tar-index")
    assert "n02000000.tar is named after no class" in command.error("image-info", "--workers", 0)
    assert "--workers must not be negative" in command.error("image-info", "--workers", -1)
    assert "--workers must be positive" in command.error("tar-index", "--workers", 0)
    broken = archives / f"{DOG}.tar"
    broken.write_bytes(broken.read_bytes()[:1500])
    assert f"{DOG}.tar is damaged, cut short or no plain tar archive" in command.error("tar-index")
    broken.write_bytes(b"")
    assert f"{DOG}.tar is damaged, cut short or no plain tar archive" in command.error("tar-index")
    assert "no archives *.tar in" in command.error("tar-index", "--archives", command.root)
