"""The classifier of class embeddings: background, other vocabularies, files that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from detection.zero_shot_classifier import ZeroShotClassifier, classifier_weight, load_class_rows
from detectron2.layers import ShapeSpec
from prompt_pretrain.errors import InputError

WIDTH, CLASSES = 6, 4


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def path(rows: torch.Tensor, tmp_path: Path) -> str:
    np.save(tmp_path / "rows.npy", rows.numpy())
    return str(tmp_path / "rows.npy")


def make(path: str, **options: float) -> ZeroShotClassifier:
    shape = ShapeSpec(channels=2, height=2, width=2)
    return ZeroShotClassifier(shape, num_classes=CLASSES, zs_weight_path=path, zs_weight_dim=WIDTH, **options)


def test_logits_are_scaled_cosines_and_background_is_zero(path: str, rows: torch.Tensor) -> None:
    classifier = make(path, norm_temperature=20.0)
    x = torch.randn(3, 8)
    logits = classifier(x)
    cosines = F.cosine_similarity(classifier.linear(x)[:, None], rows, dim=2)
    assert_close(logits[:, :-1], 20 * cosines)
    assert_close(logits[:, -1], torch.zeros(3))


def test_bias_is_learned_and_belongs_to_background_too(path: str) -> None:
    classifier = make(path, use_bias=-3.0)
    logits = classifier(torch.randn(3, 8))
    assert_close(logits[:, -1], torch.full((3,), -3.0))
    logits.sum().backward()
    assert classifier.cls_bias.grad.item() == logits.numel()
    assert make(path, use_bias=0.5).cls_bias is None


def test_embeddings_are_frozen_unless_random(path: str) -> None:
    assert set(dict(make(path).named_parameters())) == {"linear.weight", "linear.bias"}
    random = make("rand")
    assert "zs_weight" in dict(random.named_parameters())
    assert_close(random.zs_weight[:, -1].detach(), torch.zeros(WIDTH))


def test_a_region_of_zeros_has_logits_of_zero(path: str) -> None:
    classifier = make(path)
    torch.nn.init.zeros_(classifier.linear.bias)
    assert_close(classifier(torch.zeros(2, 8)), torch.zeros(2, CLASSES + 1))


@pytest.mark.parametrize("start", ["file", "rand"])
def test_another_vocabulary_is_no_part_of_the_state(path: str, start: str) -> None:
    classifier = make(path if start == "file" else start)
    others = torch.randn(9, WIDTH)
    classifier.set_weight(classifier_weight(others, norm_weight=True))
    x = torch.randn(3, 8)
    assert_close(classifier(x)[:, :-1], classifier(x, classifier=others))
    assert set(classifier.state_dict()) == {"linear.weight", "linear.bias"}
    assert classifier(x).shape == (3, 10)


def test_one_class_is_a_vocabulary(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones((1, WIDTH), dtype=np.float16))
    classifier = ZeroShotClassifier(8, num_classes=1, zs_weight_path=str(tmp_path / "one.npy"), zs_weight_dim=WIDTH)
    assert classifier(torch.randn(2, 8)).shape == (2, 2)


def test_files_that_do_not_fit_are_errors(path: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"width {WIDTH} but .*ZEROSHOT_WEIGHT_DIM is 5"):
        load_class_rows(path, CLASSES, 5)
    with pytest.raises(InputError, match="holds 4 class embeddings but MODEL.ROI_HEADS.NUM_CLASSES is 7"):
        load_class_rows(path, 7, WIDTH)
    with pytest.raises(InputError, match="no class embeddings"):
        load_class_rows(str(tmp_path / "absent.npy"), CLASSES, WIDTH)
    with pytest.raises(InputError, match="no class embeddings datasets/metadata/absent.npy"):
        load_class_rows("datasets/metadata/absent.npy", CLASSES, WIDTH)
