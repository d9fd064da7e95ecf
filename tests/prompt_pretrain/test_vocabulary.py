import json
import logging

import open_clip
import pytest

from prompt_pretrain.errors import InputError
from prompt_pretrain.registered_vocabularies import ALIASES, canonical_name
from prompt_pretrain.vocabulary import (
    Vocabulary,
    clean_class_name,
    find_ties,
    imagenet21k_names,
    load_vocabulary,
    registered_names,
)

SIZES = {
    "lvis_v1": 1203, "coco": 80, "objects365": 365, "openimages": 500, "imagenet21k": 10450,
    "imagenet21k_fall11": 11221, "imagenet21k_full": 21841, "lvis_22k": 22047, "imagenet1k": 1000, "imagenet_a": 200,
    "imagenet_r": 200, "caltech101": 100, "oxford_pets": 37, "stanford_cars": 196, "oxford_flowers": 102,
    "food101": 101, "fgvc_aircraft": 100, "sun397": 397, "dtd": 47, "eurosat": 10, "ucf101": 101, "coco_stuff": 171,
    "voc": 20, "pcontext": 59, "ade20k": 150, "ade20k_full": 847, "cityscapes": 19, "shapeworld": 2000,
}  # fmt: skip


@pytest.mark.parametrize("name", registered_names())
def test_every_registered_vocabulary_is_whole(name):
    vocabulary = load_vocabulary(name)
    assert len(vocabulary) == SIZES[name]
    assert all(isinstance(n, str) and clean_class_name(n).strip() for n in vocabulary.class_names)
    assert not vocabulary.ids or len(set(vocabulary.ids)) == len(vocabulary)
    assert all(0 <= i < len(vocabulary) for rows in vocabulary.splits.values() for i in rows)


def test_aliases_and_spellings_lead_to_the_same_vocabulary():
    for alias, name in ALIASES.items():
        assert load_vocabulary(alias) is load_vocabulary(name)
    for spelling in ("OxfordPets", "oxford-pets", "Oxford Pets", "pets"):
        assert load_vocabulary(spelling).name == "oxford_pets"
    for spelling, name in [("ImageNet21K", "imagenet21k"), ("DescribableTextures", "dtd"), ("cocostuff", "coco_stuff")]:
        assert canonical_name(spelling) == name


def test_detection_splits_have_the_published_sizes():
    lvis, coco = load_vocabulary("lvis"), load_vocabulary("coco")
    assert {split: len(rows) for split, rows in lvis.splits.items()} == {
        "base": 866, "novel": 337, "frequent": 405, "common": 461, "rare": 337,
    }  # fmt: skip
    assert lvis.class_names[:2] == ("aerosol_can", "air_conditioner") and lvis.ids == tuple(range(1, 1204))
    assert lvis.class_names[161] == "bull" and lvis.synonyms[161] == ("horned_cow",)
    assert {split: len(rows) for split, rows in coco.splits.items()} == {
        "base": 48, "novel": 17, "unused": 15, "generalized": 65,
    }  # fmt: skip
    assert sorted(set(range(1, 91)) - set(coco.ids)) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    novel = load_vocabulary("coco:novel")
    assert novel.class_names[:3] == ("airplane", "bus", "cat") and novel.ids[0] == 5 and novel.name == "coco:novel"
    o365 = load_vocabulary("objects365")
    assert sum(name.endswith(" ") for name in o365.class_names) == 3 and o365.class_names[0] == "Person"


def test_segmentation_splits_have_the_published_sizes():
    stuff = load_vocabulary("coco_stuff")
    assert {split: len(rows) for split, rows in stuff.splits.items()} == {
        "seen": 156, "unseen": 15, "thing": 80, "stuff": 91,
    }  # fmt: skip
    assert stuff.subset("unseen").class_names[:2] == ("cow", "giraffe")
    assert load_vocabulary("voc:unseen").class_names == ("pottedplant", "sheep", "sofa", "train", "tvmonitor")
    assert load_vocabulary("ade20k_full").class_names[1] == "building, edifice"
    shapes = load_vocabulary("shapeworld")
    assert len(shapes.splits["base"]) + len(shapes.splits["novel"]) == 2000


def test_ties_are_the_known_ones():
    processed = load_vocabulary("imagenet21k").class_names
    assert len(processed) - len(set(processed)) == 754
    assert sum(len(ids) - 1 for ids in find_ties(processed).values()) == 760  # case does not reach the text encoder
    assert find_ties(load_vocabulary("imagenet1k").class_names) == {"missile": [657, 744], "sunglasses": [836, 837]}
    assert find_ties(load_vocabulary("openimages").class_names) == {"bench": [14, 71], "mouse": [325, 449]}
    assert find_ties(load_vocabulary("lvis").class_names) == {}
    assert find_ties(["traffic_light", "a", "Traffic  Light", "traffic light &amp;"]) == {"traffic light": [0, 2]}
    assert find_ties([]) == {}


def test_107_lvis_names_merge_with_the_dot():
    encode = open_clip.SimpleTokenizer().encode
    dot = encode(".")

    def merged(vocabulary: str) -> int:
        names = map(clean_class_name, load_vocabulary(vocabulary).class_names)
        return sum(encode(name + ".") != encode(name) + dot for name in names)

    assert (merged("lvis"), merged("coco"), merged("objects365")) == (107, 0, 0)


def test_imagenet21k_names_cover_all_wnids():
    names = imagenet21k_names()
    assert len(names) == 21841 and names["n00005787"] == "benthos"
    processed = load_vocabulary("imagenet21k")
    assert processed.ids[0] == "n00005787" and list(processed.ids) == sorted(processed.ids)
    assert all(names[wnid] == name for wnid, name in zip(processed.ids, processed.class_names, strict=True))
    merged = load_vocabulary("lvis_22k")
    assert merged.class_names[:1203] == load_vocabulary("lvis").class_names and merged.class_names[1203] == "organism"
    assert merged.ids == tuple(range(1, 22048))


def test_comma_lists():
    assert load_vocabulary("red car, traffic cone") == Vocabulary("custom", ("red car", "traffic cone"))
    assert load_vocabulary("cat,").class_names == ("cat",)
    with pytest.raises(InputError, match="class 2 of 3 in the comma list has an empty name"):
        load_vocabulary("a,,b")


def test_text_files(tmp_path, caplog):
    path = tmp_path / "my classes.txt"
    path.write_bytes("\ufeff# comment\r\ncrème brûlée\r\n\r\n  Tesla, Model S \r\ncaf\u00e9".encode())
    assert load_vocabulary(str(path)) == Vocabulary("my classes", ("crème brûlée", "Tesla, Model S", "café"))
    path.write_text("n01440764 tench\nn01484850 great white shark\n")
    vocabulary = load_vocabulary(path)
    assert vocabulary.class_names == ("tench", "great white shark") and vocabulary.ids == ("n01440764", "n01484850")
    assert not caplog.records
    path.write_text("cat\ndog\nCat\n")
    with caplog.at_level(logging.WARNING):
        assert len(load_vocabulary(path)) == 3
    assert "names 'cat' 2 times: equal features" in caplog.text


def test_json_files(tmp_path):
    path = tmp_path / "v.json"
    path.write_text(json.dumps(["b", "a"]))
    assert load_vocabulary(path).class_names == ("b", "a")
    categories = [{"id": 9, "name": "z", "synonyms": ["z", "zed"]}, {"id": 2, "name": "b", "synonyms": ["b"]}]
    for content in (categories, {"images": [], "categories": categories}):
        path.write_text(json.dumps(content))
        assert load_vocabulary(path) == Vocabulary("v", ("b", "z"), ids=(2, 9), synonyms=(("b",), ("z", "zed")))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", b"# only\n\n", "a.txt holds no class names"),
        ("a.txt", b"caf\xe9\n", "a.txt is not UTF-8 text .*byte 3"),
        ("a.txt", b"a\n_\n", "class 2 of 2 in .*a.txt has an empty name \\('_'\\)"),
        ("a.json", b"[", "a.json is no valid JSON"),
        ("a.json", b"{}", "neither a list of names nor a list under 'categories'"),
        ("a.json", b"[]", "a.json holds no class names"),
        ("a.json", b'["a", ""]', "class 2 of 2 in .*a.json has an empty name"),
        ("a.json", b'[{"id": 1}]', "category 0 of .*a.json lacks an integer 'id' or a 'name'"),
        ("a.json", b'[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', "gives the category id 1 twice"),
    ],
)
def test_bad_files_are_explained(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_vocabulary(tmp_path / file)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no vocabulary given"),
        ("lviss", "unknown vocabulary 'lviss'; nearest names: .*lvis"),
        ("zzzzqqq", "unknown vocabulary 'zzzzqqq'; known names: lvis_v1, coco"),
        ("coco:rare", "vocabulary coco has no split 'rare'; it has base, novel, unused, generalized"),
        ("food101:base", "has no split 'base'; it has no splits"),
        ("missing.txt", "no vocabulary file missing.txt"),
    ],
)
def test_bad_names_are_explained(spec, message):
    with pytest.raises(InputError, match=message):
        load_vocabulary(spec)
