from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prompt_pretrain import analysis
from prompt_pretrain.analysis import (
    alignment,
    confused_pairs,
    nearest_words,
    project,
    project_classes_and_images,
    uniformity,
)
from prompt_pretrain.errors import InputError


def random_rows(count, width=8, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def tiny_clip():
    embedding = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [0.0, 0.0]])
    words = ["the", "red", "st", "sand", "other"]
    return SimpleNamespace(
        clip_id="tiny",
        model=SimpleNamespace(token_embedding=SimpleNamespace(weight=embedding)),
        tokenizer=SimpleNamespace(decode=lambda ids: "".join(words[i] + " " for i in ids)),
    )


def test_alignment_is_the_mean_squared_distance_to_the_own_class():
    classes, images = torch.eye(2) * 3, torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 1.0]])
    assert alignment(images, classes, torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_uniformity_equals_the_loop_over_pairs(monkeypatch, chunk):
    monkeypatch.setattr(analysis, "_ROWS_AT_ONCE", chunk)
    rows = random_rows(20) * 5
    expected = torch.pdist(F.normalize(rows.double(), dim=1)).square().mul(-2).exp().mean().log()
    assert uniformity(rows) == pytest.approx(float(expected), abs=1e-6)


def test_equal_rows_are_as_far_from_uniform_as_can_be():
    assert uniformity(torch.ones(5, 4)) == pytest.approx(0.0, abs=1e-6)


def test_nearest_words_come_in_order_of_distance():
    near_red, near_st = nearest_words(torch.tensor([[0.9, 0.0], [0.1, 0.8]]), tiny_clip(), count=3)
    assert [word.word for word in near_red] == ["red", "the", "other"]
    assert near_red[0].distance == pytest.approx(0.1)
    assert near_red[0].token_id == 1
    assert [word.word for word in near_st] == ["st", "the", "other"]


def test_nearest_words_are_looked_up_among_chosen_tokens():
    (words,) = nearest_words(torch.tensor([[0.9, 0.0]]), tiny_clip(), token_ids=[3, 2])
    assert [(word.word, word.token_id) for word in words] == [("st", 2), ("sand", 3)]


def test_nearest_words_of_an_unusable_context_are_an_error():
    with pytest.raises(InputError, match="of a class-specific prompt choose a class"):
        nearest_words(torch.zeros(3, 4, 2), tiny_clip())
    with pytest.raises(InputError, match="the prompt has width 5 but the text tower of tiny has 2"):
        nearest_words(torch.zeros(4, 5), tiny_clip())


def test_pca_finds_the_plane_the_points_lie_in_and_its_signs_are_stable():
    plane = torch.linalg.qr(random_rows(8, 8))[0][:2]
    rows = F.normalize(random_rows(30, 2, seed=1) * torch.tensor([3.0, 1.0]), dim=1) @ plane
    result = project(rows)
    assert sum(result.explained) == pytest.approx(1.0)
    distances = torch.cdist(torch.from_numpy(result.points), torch.from_numpy(result.points))
    assert torch.allclose(distances, torch.cdist(rows.double(), rows.double()), atol=1e-5)
    np.testing.assert_allclose(project(rows).points, result.points)


def test_classes_and_images_are_centred_apart():
    classes, images = random_rows(12), random_rows(40, seed=1)
    images[:, 0] += 50  # the gap between the kinds
    texts, pictures = project_classes_and_images(classes, images)
    assert len(texts.points) == 12
    assert len(pictures.points) == 40
    assert np.abs(texts.points.mean(0)).max() < 1e-9
    assert np.abs(pictures.points.mean(0)).max() < 1e-9


def test_confusions_are_counted():
    ranked = np.array([[1], [1], [0], [2], [2]])
    pairs = confused_pairs(ranked, np.array([0, 0, 0, 2, 1]), ["a", "b", "c"], count=5)
    assert pairs == [
        {"label": "a", "predicted": "b", "images": 2},
        {"label": "b", "predicted": "c", "images": 1},
    ]


def test_unusable_input_is_one_clear_error(monkeypatch):
    with pytest.raises(InputError, match="at least one image"):
        alignment(torch.zeros(0, 3), torch.eye(3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="pairs of classes, got 1"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(InputError, match="at least 3 features, got 2"):
        project(torch.eye(2))
    with pytest.raises(InputError, match="unknown projection 'umap'; expected pca or tsne"):
        project(torch.eye(4), "umap")
    monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        project(torch.eye(4), "tsne")
