import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.classification.decoding import open_image
from prompt_pretrain.classification.items import ImageItem
from prompt_pretrain.classification.randomness import make_generator
from prompt_pretrain.classification.transforms import eval_transform
from prompt_pretrain.clip import clip_from_config
from prompt_pretrain.errors import InputError
from prompt_pretrain.regional.classes import regional_classes
from prompt_pretrain.regional.download import download
from prompt_pretrain.regional.selection import SelectionRules, select, write_detector_json
from tests.prompt_pretrain.regional.tiny_lvis import CATEGORIES
from tests.prompt_pretrain.regional.web_server import picture
from tests.prompt_pretrain.tiny_run import CLIP_CONFIG

CLASSES = regional_classes(CATEGORIES, "a.json")


@pytest.fixture(scope="module")
def clip():
    return clip_from_config(CLIP_CONFIG)


@pytest.fixture
def downloaded(tmp_path):
    """Images 1 to 4 and a copy of 1 in another encoding, of one class; nothing usable of another."""
    web, lists = tmp_path / "web", tmp_path / "lists"
    web.mkdir()
    lists.mkdir()
    for seed in range(1, 5):
        (web / f"{seed}.jpg").write_bytes(picture(seed))
    (web / "copy.png").write_bytes(_as_png(picture(1)))
    (lists / "cow.txt").write_text("1.jpg\n2.jpg\nnone.jpg\ncopy.png\n3.jpg\n4.jpg\n")
    (lists / "dog.txt").write_text("none.jpg\n")
    download(lists, tmp_path / "out", web_folder=web)
    return tmp_path / "out"


def _as_png(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "PNG")
    return buffer.getvalue()


def ranks(chosen):
    return [int(Path(path).stem) for path in chosen["cow"]]


def test_the_published_rule_takes_the_first_ones(downloaded):
    chosen = select(downloaded, CLASSES, SelectionRules(top_k=3))
    assert list(chosen) == ["cow"] and ranks(chosen) == [0, 1, 3]


def test_scores_of_the_images_themselves(downloaded, clip, tmp_path):
    first = select(downloaded, CLASSES, SelectionRules(top_k=9))
    embeddings = _near_image(clip, first["cow"][-1])
    options = {"clip": clip, "embeddings": embeddings, "cache_folder": tmp_path / "cache"}
    best = select(downloaded, CLASSES, SelectionRules(top_k=1, rescore=True), **options)
    assert ranks(best) == [5]
    only = select(downloaded, CLASSES, SelectionRules(rescore=True, min_score=0.9999), **options)
    assert ranks(only) == [5]


def test_copies_are_left_out(downloaded, clip, tmp_path):
    first = select(downloaded, CLASSES, SelectionRules(top_k=9))
    embeddings = _near_image(clip, first["cow"][0])
    options = {"clip": clip, "embeddings": embeddings, "cache_folder": tmp_path / "cache"}
    found = select(downloaded, CLASSES, SelectionRules(copy_above=0.9999), **options)
    assert ranks(found) == [0, 1, 4, 5]
    found = select(
        downloaded, CLASSES, SelectionRules(copy_above=0.9999), avoid=[ImageItem(first["cow"][1], 0)], **options
    )
    assert ranks(found) == [0, 4, 5]  # what an evaluation shows is no training image


def test_the_data_set_of_a_detector(downloaded, tmp_path):
    chosen = select(downloaded, CLASSES, SelectionRules(top_k=2))
    assert write_detector_json(chosen, CLASSES, downloaded, tmp_path / "novel.json") == 2
    content = json.loads((tmp_path / "novel.json").read_text())
    assert content["images"][1] == {
        "id": 1,
        "file_name": "cow/00000/000000001.jpg",
        "height": 32,
        "width": 40,
        "pos_category_ids": [4],
    }
    assert content["annotations"][1] == {
        "id": 2,
        "image_id": 1,
        "category_id": 4,
        "bbox": [0, 0, 1, 1],
        "area": 1,
        "iscrowd": 0,
    }
    assert [category["id"] for category in content["categories"]] == [1, 2, 3, 4]


def test_what_cannot_be_selected_is_named(downloaded, clip, tmp_path):
    with pytest.raises(InputError, match="no downloaded image of the 1 classes; its records.jsonl files say why"):
        select(downloaded, CLASSES[:1], SelectionRules())
    with pytest.raises(InputError, match="need a CLIP and class embeddings"):
        select(downloaded, CLASSES, SelectionRules(rescore=True))
    other = ClassEmbeddings(torch.ones(1, clip.embed_dim), ("dog",))
    with pytest.raises(InputError, match="no embedding of the class of folder cow"):
        select(
            downloaded, CLASSES, SelectionRules(rescore=True), clip=clip, embeddings=other, cache_folder=tmp_path / "c"
        )
    with pytest.raises(InputError, match="top k of the selection is 0"):
        SelectionRules(top_k=0)
    with pytest.raises(InputError, match="a cosine above 2"):
        SelectionRules(copy_above=2)


def _near_image(clip, path):
    image = eval_transform(clip.image_size, clip.mean, clip.std)(open_image(path), make_generator("unused"))
    feature = clip.encode_image(image[None]).float()
    names = tuple(item.name for item in CLASSES)
    return ClassEmbeddings(feature.repeat(len(names), 1).detach(), names, clip.clip_id)
