"""Labels from captions."""

import pytest

from tests.datasets.preparation_tools import Command, jpeg


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command("prepare_captions", tmp_path, monkeypatch, capsys)


def published_rule(text, name):
    pattern = f" {name} "
    return pattern in text or text.startswith(pattern[1:]) or text.endswith(pattern[:-1])


def test_tagger_agrees_with_the_published_rule(command):
    names = ["dog", "toy dog", "hot dog bun", "bun", "a"]
    tagger = command.module.CaptionTagger([{"id": number, "synonyms": [name]} for number, name in enumerate(names, 1)])
    texts = [
        "dog",
        "a dog",
        "a dog.",
        "dog on a hot dog bun",
        "hotdog bun",
        "toy  dog",
        "toy dog",
        "hot dog bun",
        "the toy dog and hot dog bun",
        "",
        " ",
        "Bun",
        "one a",
    ]
    for text in texts:
        expected = [number for number, name in enumerate(names, 1) if published_rule(text.lower(), name)]
        assert tagger.find(text) == expected, text


def test_synonyms_are_normalised(command):
    assert command.module.normalise("Toy_dog_(animal)") == "toy dog"
    tagger = command.module.CaptionTagger([{"id": 5, "synonyms": ["Toy_dog_(animal)", "(odd)"]}])
    assert tagger.find("One TOY dog") == [5]


def write_coco(command):
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": 4, "width": 5, "license": 1} for number in (9, 2, 4)
    ]
    captions = [(2, "A Sausage on plates"), (9, "nothing here"), (2, "the dog waits"), (9, "a cat sleeps")]
    annotations = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captions, 1)]
    command.write("coco/annotations/captions_train2017.json", {"images": images, "annotations": annotations})


def test_coco_by_all_captions(command):
    write_coco(command)
    assert "captions of 2 of 3 images name 3 of 80 classes" in command("coco")
    content = command.read("coco/annotations/captions_train2017_tags_allcaps.json")
    assert content["images"] == [
        {
            "id": 9,
            "file_name": "000000000009.jpg",
            "height": 4,
            "width": 5,
            "captions": ["nothing here", "a cat sleeps"],
            "pos_category_ids": [17],
        },
        {
            "id": 2,
            "file_name": "000000000002.jpg",
            "height": 4,
            "width": 5,
            "captions": ["A Sausage on plates", "the dog waits"],
            "pos_category_ids": [18, 58],  # LVIS' sausage is COCO's hot dog
        },
    ]
    assert len(content["categories"]) == 80
    assert {row["frequency"] for row in content["categories"]} == {"f"}


def test_coco_by_the_first_caption_with_all_images(command):
    write_coco(command)
    command("coco", "--first-caption", "--keep-images")
    content = command.read("coco/annotations/captions_train2017_tags_full.json")
    assert [row["pos_category_ids"] for row in content["images"]] == [[], [58], []]


def test_conceptual_captions(command):
    folder = command.root / "cc3m/training"
    folder.mkdir(parents=True)
    (command.root / "cc3m/Train_GCC-training.tsv").write_text(
        "a dog runs\thttp://a\nlost\thttp://b\nan aerosol can here\thttp://c\nbad\thttp://d\n"
    )
    (folder / "1.jpg").write_bytes(jpeg(8, 6))
    (folder / "3.jpg").write_bytes(jpeg(8, 6, orientation=8))
    (folder / "4.jpg").write_bytes(b"no image")
    assert "4 captions, 3 images downloaded, 2 readable" in command("cc3m", "--workers", 1)
    content = command.read("cc3m/train_image_info.json")
    assert content["images"] == [
        {"id": 1, "file_name": "1.jpg", "height": 6, "width": 8, "captions": ["a dog runs"]},
        {"id": 3, "file_name": "3.jpg", "height": 8, "width": 6, "captions": ["an aerosol can here"]},
    ]
    assert len(content["categories"]) == 1203
    command("cc3m-tags")
    dog = next(row["id"] for row in content["categories"] if row["name"] == "dog")
    labels = [row["pos_category_ids"] for row in command.read("cc3m/train_image_info_tags.json")["images"]]
    assert labels == [[dog], [1]] or (dog in labels[0] and 1 in labels[1])
    command("cc3m-tags", "--classes", "coco")
    content = command.read("cc3m/coco_train_image_info_tags.json")
    assert [(row["id"], row["pos_category_ids"]) for row in content["images"]] == [(1, [18])]
    command("cc3m-tags", "--classes", "coco", "--keep-images")
    assert len(command.read("cc3m/coco_train_image_info_tags_full.json")["images"]) == 2


def test_errors(command):
    assert "captions_train2017.json not found" in command.error("coco")
    content = {"images": [], "annotations": [{"id": 3, "image_id": 1}]}
    command.write("coco/annotations/captions_train2017.json", content)
    assert "annotation 3 has no 'caption'" in command.error("coco")
    assert "Train_GCC-training.tsv not found" in command.error("cc3m")
    (command.root / "cc3m").mkdir()
    (command.root / "cc3m/Train_GCC-training.tsv").write_text("a dog\thttp://a\n\thttp://b\n")
    assert "line 2 is '\\thttp://b', expected caption<TAB>url" in command.error("cc3m")
    (command.root / "cc3m/Train_GCC-training.tsv").write_text("a dog\thttp://a\n")
    assert "holds no readable image 1.jpg" in command.error("cc3m")
    assert "--workers must be positive" in command.error("cc3m", "--workers", 0)
