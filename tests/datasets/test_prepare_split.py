"""Split files made from what the authors of the data sets publish."""

import json
from collections import Counter

import numpy as np
import pytest
from scipy.io import savemat

from prompt_pretrain.classification.registry import load_classification_data
from tests.classification_recipes import write_aircraft, write_image, write_split_set

from .preparation_tools import Command


@pytest.fixture
def tool(tmp_path, monkeypatch, capsys):
    return Command("prepare_split", tmp_path, monkeypatch, capsys)


def counts(rows):
    return [Counter(label for _, label, _ in rows[split]) for split in ("train", "val", "test")]


def test_folders_are_cut_in_shares_of_each_class(tool, tmp_path):
    for name, count in (("Faces", 10), ("Faces_easy", 3), ("BACKGROUND_Google", 2), ("ant", 7), ("airplanes", 5)):
        for i in range(count):
            write_image(tmp_path / "caltech-101/101_ObjectCategories" / name / f"image_{i:04d}.jpg", i)
    printed = tool("Caltech101")
    assert "3 classes; images: 11 train, 4 val, 7 test" in printed
    assert "is not the published split" in printed
    rows = tool.read("caltech-101/split_zhou_Caltech101.json")
    # Halves are rounded to even: 7 / 2 -> 4, 5 / 2 -> 2.
    assert counts(rows) == [Counter({0: 5, 1: 2, 2: 4}), Counter({0: 2, 1: 1, 2: 1}), Counter({0: 3, 1: 2, 2: 2})]
    assert {name for split in rows.values() for _, _, name in split} == {"face", "airplane", "ant"}
    data = load_classification_data("Caltech101", tmp_path)
    assert data.class_names == ("face", "airplane", "ant")


def test_a_split_depends_on_images_and_seed_alone_and_stays_once_made(tool, tmp_path):
    for name in ("banded", "dotted"):
        for i in range(12):
            write_image(tmp_path / "dtd/images" / name / f"{name}_{i:04d}.jpg", i)
    file = tmp_path / "dtd/split_zhou_DescribableTextures.json"
    tool("dtd")
    first = file.read_text()
    assert "checked" in tool("dtd", "--seed", "2")
    assert file.read_text() == first
    file.unlink()
    tool("dtd")
    assert file.read_text() == first
    file.unlink()
    tool("dtd", "--seed", "2")
    assert file.read_text() != first


def test_eurosat_has_names_of_its_own(tool, tmp_path):
    for name in ("AnnualCrop", "SeaLake", "Forest"):
        for i in range(4):
            write_image(tmp_path / "eurosat/2750" / name / f"{name}_{i}.jpg", i)
    tool("EuroSAT")
    assert load_classification_data("EuroSAT", tmp_path).class_names == ("Annual Crop Land", "Forest", "Sea or Lake")


def check_official(tool, tmp_path, name, class_names, train, test):
    """Official test images stay, a fifth of the training images of a class validates."""
    tool(name)
    data = load_classification_data(name, tmp_path)
    assert data.class_names == class_names
    assert [item.path for item in data.test] == [str(tmp_path / path) for path in test]
    assert sorted(item.path for item in [*data.train, *data.val]) == sorted(str(tmp_path / path) for path in train)
    assert [item.label for item in data.val] == [0]


def test_pets(tool, tmp_path):
    folder = tmp_path / "oxford_pets"
    names = [f"Abyssinian_{i}" for i in range(6)] + ["american_bulldog_1", "Abyssinian_10", "american_bulldog_2"]
    lines = [f"{name} {1 if name[0] == 'A' else 2} 1 1" for name in names]
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations/trainval.txt").write_text("# image class species breed\n" + "\n".join(lines[:7]))
    (folder / "annotations/test.txt").write_text("\n".join(lines[7:]))
    paths = [f"oxford_pets/images/{name}.jpg" for name in names]
    for path in paths:
        write_image(tmp_path / path)
    check_official(tool, tmp_path, "OxfordPets", ("abyssinian", "american_bulldog"), paths[:7], paths[7:])


def test_cars(tool, tmp_path):
    folder = tmp_path / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    paths = {}
    for split, labels, file in (
        ("train", [1, 1, 1, 1, 1, 2], "devkit/cars_train_annos.mat"),
        ("test", [1, 2], "cars_test_annos_withlabels.mat"),
    ):
        kinds = [("fname", object), ("class", object)]
        entries = [(f"{i + 1:05d}.jpg", label) for i, label in enumerate(labels)]
        savemat(folder / file, {"annotations": np.array([entries], dtype=kinds)})
        paths[split] = [f"stanford_cars/cars_{split}/{i + 1:05d}.jpg" for i in range(len(labels))]
        for path in paths[split]:
            write_image(tmp_path / path)
    class_names = ("2000 AM General Hummer SUV", "2012 Acura RL Sedan")
    check_official(tool, tmp_path, "StanfordCars", class_names, paths["train"], paths["test"])


def test_sun(tool, tmp_path):
    folder = tmp_path / "sun397"
    train = [f"/a/abbey/sun_{i}.jpg" for i in range(5)] + ["/a/apse/indoor/sun_1.jpg"]
    test = ["/a/abbey/sun_9.jpg", "/a/apse/indoor/sun_9.jpg"]
    for line in train + test:
        write_image(tmp_path / f"sun397/SUN397{line}")
    (folder / "ClassName.txt").write_text("/a/abbey\n/a/apse/indoor\n")
    (folder / "Training_01.txt").write_text("\n".join(train) + "\n")
    (folder / "Testing_01.txt").write_text("\n".join(test) + "\n")
    paths = [[f"sun397/SUN397{line}" for line in lines] for lines in (train, test)]
    check_official(tool, tmp_path, "SUN397", ("abbey", "indoor apse"), *paths)


def test_ucf(tool, tmp_path):
    lists = tmp_path / "ucf101/ucfTrainTestlist"
    lists.mkdir(parents=True)
    train = [f"ApplyLipstick/v_ApplyLipstick_g{i:02d}_c01.avi 1" for i in range(5)] + ["YoYo/v_YoYo_g01_c01.avi 2"]
    test = ["ApplyLipstick/v_ApplyLipstick_g09_c01.avi", "YoYo/v_YoYo_g09_c01.avi"]
    (lists / "classInd.txt").write_text("1 ApplyLipstick\n2 YoYo\n")
    (lists / "trainlist01.txt").write_text("\n".join(train))
    (lists / "testlist01.txt").write_text("\n".join(test))
    paths = [[line.split()[0].replace(".avi", ".jpg") for line in lines] for lines in (train, test)]
    renamed = {"ApplyLipstick/": "Apply_Lipstick/", "YoYo/": "Yo_Yo/"}
    for lines in paths:
        for i, path in enumerate(lines):
            action = path[: path.index("/") + 1]
            lines[i] = "ucf101/UCF-101-midframes/" + path.replace(action, renamed[action], 1)
            write_image(tmp_path / lines[i])
    check_official(tool, tmp_path, "UCF101", ("Apply_Lipstick", "Yo_Yo"), *paths)


def test_flowers(tool, tmp_path):
    folder = tmp_path / "oxford_flowers"
    labels = [2, 1, 1, 2, 1, 1]
    for i in range(len(labels)):
        write_image(folder / f"jpg/image_{i + 1:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    (folder / "cat_to_name.json").write_text(json.dumps({"2": "hard-leaved pocket orchid", "1": "pink primrose"}))
    tool("OxfordFlowers")
    data = load_classification_data("OxfordFlowers", tmp_path)
    assert data.class_names == ("pink primrose", "hard-leaved pocket orchid")
    pictures = {item.path[-9:-4]: item.label + 1 for part in (data.train, data.val, data.test) for item in part}
    assert pictures == {f"{i + 1:05d}": label for i, label in enumerate(labels)}


def test_every_set_that_is_there_is_checked(tool, tmp_path):
    write_split_set(tmp_path, "Food101")
    write_aircraft(tmp_path)
    lines = tool().splitlines()
    assert [line.split(":")[0].split("/")[-1] for line in lines if line.startswith("checked")] == [
        "split_zhou_Food101.json",
        "variants.txt",
    ]
    assert any("3 classes where Food101 has 101" in line for line in lines)


def test_what_cannot_be_split_is_an_error(tool, tmp_path):
    assert "none of caltech-101, " in tool.error()
    assert "ImageNet has no split file; those that have are Caltech101" in tool.error("ImageNet")
    assert "2750 is not a folder; extract the images there" in tool.error("EuroSAT")
    write_image(tmp_path / "eurosat/2750/River/1.jpg")
    assert "class 0 (River) has 1 images, too few to split" in tool.error("EuroSAT")
    (tmp_path / "eurosat/2750/SeaLake").mkdir()
    assert "no images for class" in tool.error("EuroSAT")
    assert "ClassName.txt: No such file or directory; extract all archives of SUN397" in tool.error("SUN397")
    assert "cars_meta.mat: No such file" in tool.error("StanfordCars")
    folder = tmp_path / "sun397"
    folder.mkdir()
    (folder / "ClassName.txt").write_text("/a/abbey\n")
    (folder / "Training_01.txt").write_text("/b/bar/x.jpg\n")
    assert "the lists of SUN397 in" in tool.error("SUN397")
    (folder / "Training_01.txt").write_text("/a/abbey/x.jpg\n")
    (folder / "Testing_01.txt").write_text("/a/abbey/y.jpg\n")
    assert "2 images of SUN397 are not in" in tool.error("SUN397")
    write_split_set(tmp_path, "Food101").write_text("{")
    assert "split_zhou_Food101.json is not JSON" in tool.error("Food101")
