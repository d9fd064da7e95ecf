"""Classifier, losses and cascade heads of Detic against recorded numbers."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import detection
from centernet.config import add_centernet_config
from centernet.modeling.roi_heads.fed_loss import get_fed_loss_inds, load_class_freq
from detection.box_predictor import DeticFastRCNNOutputLayers
from detection.cascade_roi_heads import DeticCascadeROIHeads
from detection.image_losses import ImageLabelLoss
from detection.zero_shot_classifier import ZeroShotClassifier
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from tests.golden_files import Golden
from tests.golden_recipes import (
    apply_settings,
    close,
    close_detections,
    close_in_brief,
    fill_by_rules,
    recorded_ground_truth,
    released_settings,
    write_category_counts,
)


def array(golden: Golden, name: str) -> Tensor:
    return torch.from_numpy(golden.arrays[name])


def write_embeddings(golden: Golden, name: str, folder: Path) -> str:
    file = folder / "embeddings.npy"
    np.save(file, golden.arrays[name])
    return str(file)


@pytest.mark.golden("detic_zero_shot")
def test_detic_zero_shot(golden: Golden, tmp_path: Path) -> None:
    path = write_embeddings(golden, "in.weight_file", tmp_path)
    for case, options in golden.meta["cases"].items():
        classifier = ZeroShotClassifier(**golden.meta["args"], zs_weight_path=path, **options)
        fill_by_rules(classifier, golden.meta)
        close(golden, classifier(array(golden, "in.x")), f"{case}.logits")
        close(golden, classifier(array(golden, "in.x"), array(golden, "in.classifier")), f"{case}.override")
        if case == "default":
            close(golden, classifier.zs_weight, "zs_weight")
            entries = [[name, list(entry.shape)] for name, entry in classifier.state_dict().items()]
            assert entries == golden.meta["entries"]


@pytest.mark.golden("detic_box_losses")
def test_detic_box_losses(golden: Golden, tmp_path: Path) -> None:
    counts = write_category_counts(tmp_path / "counts.json", golden.arrays["in.image_count"])
    close(golden, load_class_freq(str(counts)), "freq_weight")
    for case, options in golden.meta["cases"].items():
        if isinstance(options, str):  # its recipe in words
            check_dynamic_losses(golden)
        elif f"{case}.inds" in golden.arrays:
            torch.manual_seed(options["torch.manual_seed"])
            weight = options["weight"] and array(golden, options["weight"])
            classes = array(golden, "in.gt_classes")
            found = get_fed_loss_inds(classes, options["num_sample_cats"], golden.meta["C"], weight)
            close(golden, found, f"{case}.inds")
        else:
            check_box_losses(golden, case, dict(options), str(counts))


def check_box_losses(golden: Golden, case: str, options: dict[str, Any], counts: str) -> None:
    seed = options.pop("torch.manual_seed", 0)
    weights = options.pop("box2box_weights", [10, 10, 5, 5])
    predictor = box_predictor(golden, weights, cat_freq_path=counts, **{"use_sigmoid_ce": True} | options)
    torch.manual_seed(seed)
    with EventStorage():
        losses = predictor.losses((array(golden, "in.scores"), array(golden, "in.deltas")), [regions(golden)])
    close(golden, losses["loss_box_reg" if case.startswith("box") else "loss_cls"], case)


def check_dynamic_losses(golden: Golden) -> None:
    inds, columns = array(golden, "dynamic.inds"), array(golden, "dynamic.cls_id_map")
    proposals = regions(golden)
    proposals.gt_classes = array(golden, "dynamic.gt_classes")
    predictor = box_predictor(golden, [10, 10, 5, 5], use_sigmoid_ce=True, dynamic_classifier=True)
    predictions = (array(golden, "in.scores")[:, : len(inds) + 1], array(golden, "in.deltas"))
    with EventStorage():
        losses = predictor.losses(predictions, [proposals], classifier_info=(None, (inds, columns), None))
    for key, loss in losses.items():
        close(golden, loss, f"dynamic.{key}")


def box_predictor(golden: Golden, weights: list[float], **options: Any) -> DeticFastRCNNOutputLayers:
    return DeticFastRCNNOutputLayers(
        8,
        num_classes=golden.meta["C"],
        box2box_transform=Box2BoxTransform(weights=weights),
        cls_agnostic_bbox_reg=True,
        image_label_loss="max_size",
        **options,
    )


def regions(golden: Golden) -> Instances:
    return Instances(
        (1000, 1000),
        proposal_boxes=Boxes(array(golden, "in.proposal_boxes")),
        gt_boxes=Boxes(array(golden, "in.gt_boxes")),
        gt_classes=array(golden, "in.gt_classes"),
    )


@pytest.mark.golden("detic_image_losses")
def test_detic_image_losses(golden: Golden) -> None:
    boxes = array(golden, "in.boxes").split(golden.meta["num_per_image"])
    size = tuple(golden.meta["image_size"])
    proposals = [Instances(size, proposal_boxes=Boxes(image_boxes)) for image_boxes in boxes]
    for case, options in golden.meta["cases"].items():
        options = {name: value for name, value in options.items() if name not in ("note", "use_sigmoid_ce")}
        ann_type = options.pop("ann_type")
        loss = ImageLabelLoss(image_loss_weight=golden.meta["image_loss_weight"], **options)
        predictions, labels, info = image_loss_inputs(golden, case)
        with EventStorage() as storage:
            losses = loss(predictions, proposals, labels, info, ann_type)
        close(golden, losses["image_loss"], f"{case}.image_loss")
        assert losses["loss_cls"] == losses["loss_box_reg"] == 0
        stored = {name: value for name, (value, _) in storage.latest().items()}
        names = ("stats_l_image", "stats_l_caption", "pool_stats")
        close(golden, [stored.get(name, 0.0) for name in names], f"{case}.storage")


def image_loss_inputs(golden: Golden, case: str) -> tuple[tuple[Tensor, ...], list[list[int]], tuple[Any, Any, Any]]:
    """Predictions, labels of the images and classifier_info as the note of the case says."""
    scores, labels, sampled, captions = array(golden, "in.scores"), golden.meta["labels"], None, None
    note = golden.meta["cases"][case].get("note", "")
    if golden.meta["cases"][case].get("dynamic_classifier"):
        inds = torch.tensor(numbers_after(note, "inds = "))
        columns = torch.full((golden.meta["C"] + 1,), len(inds))
        columns[inds] = torch.arange(len(inds))
        scores, sampled = scores[:, : len(inds) + 1], (inds, columns)
    elif "labels [[" in note:
        labels = numbers_after(note, "labels ")
    elif golden.meta["cases"][case].get("sync_caption_batch"):
        ranks = torch.tensor(numbers_after(note.replace("(", "[").replace(")", "]"), "rank "))
        captions = torch.cat((torch.zeros(len(ranks), 3), ranks[:, None]), dim=1)
        scores = torch.cat((scores, array(golden, f"in.caption_scores{len(ranks)}")), dim=1)
    elif "caption" in golden.meta["cases"][case]["ann_type"]:
        scores = torch.cat((scores, array(golden, "in.caption_scores")), dim=1)
        captions = torch.zeros(golden.arrays["in.caption_scores"].shape[1], 3)
    predictions: tuple[Tensor, ...] = (scores, torch.zeros(len(scores), 4))
    if golden.meta["cases"][case].get("with_softmax_prop"):
        predictions = (*predictions, array(golden, "in.prop_scores"))
    return predictions, labels, (None, sampled, captions)


def numbers_after(note: str, marker: str) -> Any:
    """The list that follows the last ``marker`` in a note, read as json."""
    return json.JSONDecoder().raw_decode(note.split(marker)[-1])[0]


@pytest.mark.golden("detic_cascade")
def test_detic_cascade(golden: Golden, tmp_path: Path) -> None:
    features = cascade_features(golden)
    for name, feature in features.items():
        close_in_brief(golden, feature, f"in.{name}")
    for case, settings in golden.meta["cases"].items():
        options = dict(settings)
        ann_type, labels = options.pop("ann_type", None), options.pop("labels", None)
        heads = cascade_heads(golden, options, tmp_path)
        if ann_type is None:
            check_cascade_inference(golden, case, heads.eval(), features)
        else:
            check_cascade_training(golden, case, heads.train(), features, ann_type, labels)
    entries = [[name, list(entry.shape)] for name, entry in cascade_heads(golden, {}, tmp_path).state_dict().items()]
    assert entries == golden.meta["entries"]


def cascade_features(golden: Golden) -> dict[str, Tensor]:
    rs = np.random.RandomState(int(re.search(r"RandomState\((\d+)\)", golden.meta["feature_recipe"])[1]))
    return {
        name: torch.from_numpy(rs.standard_normal(tuple(golden.arrays[f"in.{name}.shape"])).astype(np.float32))
        for name in golden.meta["input_channels"]
    }


def cascade_heads(golden: Golden, options: dict[str, Any], folder: Path) -> DeticCascadeROIHeads:
    cfg: CfgNode = get_cfg()
    add_centernet_config(cfg)
    detection.add_detic_config(cfg)
    counts = write_category_counts(folder / "counts.json", golden.arrays["in.image_count"])
    files = {
        "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH": write_embeddings(golden, "in.zs_weight_file", folder),
        "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH": str(counts),
    }
    config = golden.meta["config"]
    apply_settings(cfg, released_settings(config) | golden.meta["overrides"] | files | options)
    shapes = {
        name: ShapeSpec(channels=channels, stride=stride)
        for name, (channels, stride) in golden.meta["input_channels"].items()
    }
    heads = DeticCascadeROIHeads(cfg, shapes)
    fill_by_rules(heads, golden.meta)
    return heads


def cascade_proposals(golden: Golden) -> list[Instances]:
    return [
        Instances(
            tuple(size),
            proposal_boxes=Boxes(array(golden, f"in.boxes{i}").clone()),
            objectness_logits=array(golden, f"in.objectness{i}"),
        )
        for i, size in enumerate(golden.meta["image_sizes"])
    ]


@torch.no_grad()
def check_cascade_inference(
    golden: Golden, case: str, heads: DeticCascadeROIHeads, features: dict[str, Tensor]
) -> None:
    images = ImageList(torch.zeros(1), [tuple(size) for size in golden.meta["image_sizes"]])
    detections, losses = heads(images, features, cascade_proposals(golden))
    assert losses == {}
    for i, found in enumerate(detections):
        close_detections(golden, f"{case}.{i}", found.pred_boxes.tensor, found.scores, found.pred_classes)
        if f"{case}.{i}.masks.shape" in golden.arrays:
            close_in_brief(golden, found.pred_masks, f"{case}.{i}.masks")
    if f"{case}.stage0.scores" in golden.arrays:
        check_stages(golden, case, heads, features)


def check_stages(golden: Golden, case: str, heads: DeticCascadeROIHeads, features: dict[str, Tensor]) -> None:
    maps, proposals = list(features.values()), cascade_proposals(golden)
    for stage, predictor in enumerate(heads.box_predictor):
        scores, deltas = heads._run_stage(maps, proposals, stage)
        close(golden, scores, f"{case}.stage{stage}.scores")
        close(golden, deltas, f"{case}.stage{stage}.deltas")
        boxes = predictor.predict_boxes((scores, deltas), proposals)
        close(golden, torch.cat(boxes), f"{case}.stage{stage}.boxes")
        proposals = heads._create_proposals_from_boxes(boxes, golden.meta["image_sizes"])


def check_cascade_training(
    golden: Golden,
    case: str,
    heads: DeticCascadeROIHeads,
    features: dict[str, Tensor],
    ann_type: str,
    labels: list[list[int]] | None,
) -> None:
    sizes = [tuple(size) for size in golden.meta["image_sizes"]]
    if labels is None:
        targets = recorded_ground_truth(golden, sizes, with_masks=True)
    else:
        targets = [Instances(size) for size in sizes]
        for target, image_labels in zip(targets, labels, strict=True):
            target._pos_category_ids = image_labels
    if ann_type in ("prop", "proptag"):
        for target in targets:
            target.gt_classes = torch.zeros_like(target.gt_classes)
    features = {name: feature.clone().requires_grad_() for name, feature in features.items()}
    with EventStorage():
        proposals, losses = heads(
            ImageList(torch.zeros(1), sizes), features, cascade_proposals(golden), targets, ann_type=ann_type
        )
    recorded = {key.removeprefix(f"{case}.") for key in golden.arrays if key.startswith(f"{case}.")}
    assert set(losses) == {key for key in recorded if not key.startswith("gradnorm.") and "proposals" not in key}
    for key, loss in losses.items():
        close(golden, loss, f"{case}.{key}")
    for i, image_proposals in enumerate(proposals):
        if f"{i}.proposals" in recorded:
            close(golden, image_proposals.proposal_boxes.tensor, f"{case}.{i}.proposals")
    gradients = [key.removeprefix("gradnorm.") for key in recorded if key.startswith("gradnorm.")]
    if gradients:
        sum(losses.values()).backward()
        sources = features | dict(heads.named_parameters())
        for name in gradients:
            close(golden, sources[name].grad.norm(), f"{case}.gradnorm.{name}")
