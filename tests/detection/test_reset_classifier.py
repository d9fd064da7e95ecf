"""Another vocabulary for a trained detector: every source of embeddings, both kinds of heads, errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detection.reset_classifier import box_predictors, reset_cls_test
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.errors import InputError
from tests.detection.small_rcnn import WIDTH, small_input, small_model

ROWS = np.random.RandomState(3).standard_normal((7, WIDTH)).astype(np.float32)


def scores(model: nn.Module) -> torch.Tensor:
    found = model.eval()([small_input()])[0]["instances"]
    return torch.stack((found.scores, found.pred_classes.float()))


def test_every_source_gives_the_same_detector(tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", ROWS)
    model = small_model(tmp_path)
    before, entries = scores(model), set(model.state_dict())
    results = []
    for classifier in (
        str(tmp_path / "other.npy"),
        torch.from_numpy(ROWS.T),
        ClassEmbeddings.load(tmp_path / "other.npy"),
    ):
        reset_cls_test(model, classifier, 7)
        results.append(scores(model))
    assert_close(results[0], results[1])
    assert_close(results[0], results[2])
    assert model.roi_heads.num_classes == 7 and results[0][1].max() <= 6
    assert results[0].shape != before.shape or not torch.equal(results[0], before)
    for stage in box_predictors(model):
        weight = stage.cls_score.zs_weight
        assert weight.shape == (WIDTH, 8) and not weight[:, -1].any()
        assert_close(weight[:, :-1].norm(dim=0), torch.ones(7))
    assert entries - set(model.state_dict()) == {
        f"roi_heads.box_predictor.{stage}.cls_score.zs_weight" for stage in range(3)
    }


def test_a_wrapped_model_and_random_embeddings_are_fine(tmp_path: Path) -> None:
    model = small_model(tmp_path, MODEL__ROI_BOX_HEAD__ZEROSHOT_WEIGHT_PATH="rand")
    wrapped = nn.Module()
    wrapped.module = model
    reset_cls_test(wrapped, torch.from_numpy(ROWS.T), 7)
    assert scores(model).shape[0] == 2 and model.roi_heads.num_classes == 7


def test_heads_of_one_stage_have_one_predictor() -> None:
    model = nn.Module()
    model.roi_heads = nn.Module()
    model.roi_heads.box_predictor = nn.Linear(1, 1)
    assert box_predictors(model) == [model.roi_heads.box_predictor]


def test_wrong_numbers_and_learned_classifiers_are_errors(tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", ROWS)
    model = small_model(tmp_path)
    with pytest.raises(InputError, match=r"shape \(8, 7\), expected \(8, 6\)"):
        reset_cls_test(model, torch.from_numpy(ROWS.T), 6)
    with pytest.raises(InputError, match="7 class embeddings"):
        reset_cls_test(model, str(tmp_path / "other.npy"), 6)
    learned = small_model(tmp_path, MODEL__ROI_BOX_HEAD__USE_ZEROSHOT_CLS=False)
    with pytest.raises(InputError, match="a learned classifier, its classes are fixed"):
        reset_cls_test(learned, torch.from_numpy(ROWS.T), 7)
