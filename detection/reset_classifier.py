"""Giving a trained detector another vocabulary."""

import os
from typing import Any

from torch import Tensor, nn

from detection.zero_shot_classifier import classifier_weight, load_class_rows
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.errors import InputError

__all__ = ["box_predictors", "reset_cls_test"]


def reset_cls_test(
    model: nn.Module, classifier: str | os.PathLike | Tensor | ClassEmbeddings, num_classes: int
) -> None:
    """Let ``model`` detect the classes of ``classifier`` from now on, in place.

    Boxes and masks do not depend on the classes, so nothing else changes. The new embeddings are no part of the state
    dict: the model's own checkpoint still fits, and brings its classes back only into a new model.

    Args:
        model: maybe wrapped in DistributedDataParallel; cascade heads and heads of one stage alike.
        classifier: file of (C, D) class embeddings; a (D, C) tensor; or class embeddings.
        num_classes: C.
    Raises:
        InputError: a model with a learned classifier, or embeddings of another number or width.
    """
    model = getattr(model, "module", model)
    stages = box_predictors(model)
    if not all(hasattr(getattr(stage, "cls_score", None), "zs_weight") for stage in stages):
        raise InputError(
            "this model has a learned classifier, its classes are fixed; another vocabulary needs a model with "
            "MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS True"
        )
    width = stages[0].cls_score.zs_weight.shape[0]
    if isinstance(classifier, ClassEmbeddings):
        classifier.check(num_classes=num_classes, width=width)
        rows = classifier.embeddings
    elif isinstance(classifier, Tensor):
        if tuple(classifier.shape) != (width, num_classes):
            raise InputError(
                f"the classifier has shape {tuple(classifier.shape)}, expected {(width, num_classes)}: embedding "
                "width and number of classes"
            )
        rows = classifier.t()
    else:
        rows = load_class_rows(os.fspath(classifier), num_classes, width)
    for stage in stages:
        stage.cls_score.set_weight(
            classifier_weight(rows, stage.cls_score.norm_weight).to(stage.cls_score.linear.weight.device)
        )
        stage.num_classes = num_classes
    model.roi_heads.num_classes = num_classes


def box_predictors(model: nn.Module) -> list[Any]:
    """The box predictors of a two-stage detector, one per stage."""
    found = model.roi_heads.box_predictor
    return list(found) if isinstance(found, nn.ModuleList | list | tuple) else [found]
