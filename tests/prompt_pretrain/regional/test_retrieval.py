import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.clip import clip_from_config
from prompt_pretrain.errors import InputError
from prompt_pretrain.regional.classes import regional_classes
from prompt_pretrain.regional.retrieval import ExactIndex, build_index, open_index, retrieve
from tests.prompt_pretrain.regional.tiny_lvis import CATEGORIES
from tests.prompt_pretrain.tiny_run import CLIP_CONFIG

CLASSES = regional_classes(CATEGORIES, "a.json")[:2]


def unit(*shape):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def embeddings_of(rows):
    return ClassEmbeddings(torch.from_numpy(rows), tuple(item.name for item in CLASSES), "clip")


@pytest.mark.parametrize("rows_per_block", [3, 7, 100])
def test_blocks_find_what_one_matrix_finds(rows_per_block):
    features, queries = unit(50, 8), unit(4, 8)
    features[20] = features[3]  # equal ones: the first stands first
    index = ExactIndex(features, [str(i) for i in range(50)], rows_per_block=rows_per_block)
    scores, positions = index.search(queries, 9)
    for query, found, values in zip(queries, positions, scores, strict=True):
        expected = np.argsort(-(features @ query), kind="stable")[:9]
        assert found.tolist() == expected.tolist()
        np.testing.assert_allclose(values, (features @ query)[expected], atol=1e-6)


def test_fewer_images_than_asked_for_are_marked(tmp_path):
    index = ExactIndex(unit(2, 4), ["a", "b"])
    _, positions = index.search(unit(1, 4), 5)
    assert sorted(positions[0, :2].tolist()) == [0, 1] and positions[0, 2:].tolist() == [-1] * 3
    counts = retrieve(index, embeddings_of(unit(2, 4)), CLASSES, tmp_path, k=5)
    assert counts == {"dog": 2, "bow_(decorative_ribbons)": 2}  # not the last one again


def test_lists_are_in_the_order_of_similarity_without_repeats(tmp_path):
    features = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]] + np.array([[0], [0.3], [0], [0.1]], np.float32)
    index = ExactIndex(features, ["a", "b", "c", "a"])
    rows = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32)
    retrieve(index, embeddings_of(rows), CLASSES, tmp_path, k=4)
    assert (tmp_path / "dog.txt").read_text().splitlines() == ["a", "b", "c"]
    assert (tmp_path / "bow_(decorative_ribbons).txt").read_text().splitlines()[0] == "c"
    assert retrieve(index, embeddings_of(rows), CLASSES, tmp_path, k=4, min_score=0.5)["dog"] == 2


def test_what_does_not_fit_is_named(tmp_path):
    index = ExactIndex(unit(3, 4), ["a", "b", "c"], clip_id="another")
    with pytest.raises(InputError, match="index was made by another but the class embeddings by clip"):
        retrieve(index, embeddings_of(unit(2, 4)), CLASSES, tmp_path, k=1)
    with pytest.raises(InputError, match="features of width 4 but the class embeddings have 5"):
        retrieve(index, embeddings_of(unit(2, 5)), CLASSES, tmp_path, k=1)
    with pytest.raises(InputError, match="number of candidates is 0"):
        retrieve(index, embeddings_of(unit(2, 4)), CLASSES, tmp_path, k=0)
    lacking = ClassEmbeddings(torch.ones(1, 4), ("dog",))
    with pytest.raises(InputError, match="no embedding of 'bow"):
        retrieve(index, lacking, CLASSES, tmp_path, k=1)
    with pytest.raises(InputError, match="one address per feature"):
        ExactIndex(unit(3, 4), ["a"])
    with pytest.raises(InputError, match="is no index: .*index.json is missing"):
        open_index(tmp_path)
    with pytest.raises(InputError, match="a FAISS file needs its addresses"):
        open_index(tmp_path / "x.index")
    with pytest.raises(InputError, match="no list of addresses"):
        open_index(tmp_path / "x.index", tmp_path / "none.txt")


def test_an_index_of_a_folder(tmp_path):
    clip = clip_from_config(CLIP_CONFIG)
    images = tmp_path / "images"
    for name in ("a b/1.png", "c/2.png", "c/3.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(images / name)
    (images / "c" / "3.png").write_bytes(b"damaged")
    assert build_index(clip, images, tmp_path / "index", cache_folder=tmp_path / "cache") == 2
    index = open_index(tmp_path / "index")
    assert [index.url(i) for i in range(2)] == ["a b/1.png", "c/2.png"] and index.clip_id == clip.clip_id
    build_index(clip, images, tmp_path / "web", base_url="http://x/", cache_folder=tmp_path / "cache")
    assert open_index(tmp_path / "web").url(0) == "http://x/a%20b/1.png"
    (tmp_path / "web" / "urls.txt").write_text("one\n")
    with pytest.raises(InputError, match="parts differ in length"):
        open_index(tmp_path / "web")
    (tmp_path / "web" / "index.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        open_index(tmp_path / "web")
    with pytest.raises(InputError, match="holds no image"):
        build_index(clip, tmp_path / "index", tmp_path / "x")


def test_a_faiss_file_where_faiss_is_installed(tmp_path, monkeypatch):
    features = unit(5, 4)

    def search(queries, k):
        scores = queries @ features.T
        order = np.argsort(-scores, axis=1)[:, :k]
        filled = np.full((len(queries), k), -1)
        filled[:, : order.shape[1]] = order
        padded = np.full((len(queries), k), -1.0)
        padded[:, : order.shape[1]] = np.take_along_axis(scores, order, 1)
        return padded, filled

    def read_index(path):
        if "bad" in path:
            raise RuntimeError("no magic number")
        return SimpleNamespace(d=4, search=search)

    np.save(tmp_path / "urls.npy", np.array([f"http://x/{i}" for i in range(5)]))
    (tmp_path / "image.index").touch()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="faiss is not installed"):
        open_index(tmp_path / "image.index", tmp_path / "urls.npy")
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(read_index=read_index))
    index = open_index(tmp_path / "image.index", tmp_path / "urls.npy")
    assert retrieve(index, embeddings_of(unit(2, 4)), CLASSES, tmp_path / "lists", k=9)["dog"] == 5
    (tmp_path / "bad.index").touch()
    with pytest.raises(InputError, match="bad.index is no FAISS index"):
        open_index(tmp_path / "bad.index", tmp_path / "urls.npy")
    with pytest.raises(InputError, match="no FAISS index"):
        open_index(tmp_path / "none.index", tmp_path / "urls.npy")


def test_the_published_table_of_addresses(tmp_path, monkeypatch):
    class File(dict):
        def __init__(self, path, mode):
            super().__init__({"dataset/url": [b"http://x/0", b"http://x/1"]})

    (tmp_path / "urls.hdf5").touch()
    (tmp_path / "image.index").touch()
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=File))
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(read_index=lambda path: SimpleNamespace(d=4)))
    assert open_index(tmp_path / "image.index", tmp_path / "urls.hdf5").url(1) == "http://x/1"
