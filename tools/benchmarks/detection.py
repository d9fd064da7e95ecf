"""Detic R50: latency over vocabularies of any size, batches, masks, memory and the training step.

    python tools/benchmarks/detection.py [--quick] [--json FILE] [--device cpu|cuda]

The plain path is the published one, built from the same modules and run in turns with ours: batch norms as layers of
their own, regions pooled by torchvision, the scores of all classes in one matrix per stage, suppression over all of
them, a mask for every detection.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import _package_first  # noqa: F401  (before anything of ours)
import torch
from _made_up_detector import SIZE, made_up_classes, made_up_images, make_model, training_step
from _records import Record, fastest, parse_arguments, report
from _tensor_memory import peak_bytes
from torch import Tensor, nn
from torchvision.ops import roi_align

from centernet.modeling.roi_heads.custom_roi_heads import CustomCascadeROIHeads
from detection.inference_precision import PRECISIONS
from detection.reset_classifier import box_predictors, reset_cls_test
from detectron2.layers import ROIAlign
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Instances

SMALL, LVIS, HUGE = 80, 1203, 22047  # classes
FEW = 20  # (region, class) pairs that pass, about, where few shall


def main() -> int:
    options = parse_arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(SMALL, Path(folder), options.device).eval()
        records = classification_memory(model, options)
        records += inference(model, options)
        records += batches(model, options)
        if not options.quick:
            records += compiled_backbone(model, options)
        del model
        records += training(Path(folder), options)
    report(records, options.json)
    return 0


@torch.no_grad()
def inference(model: nn.Module, options: argparse.Namespace) -> list[Record]:
    """Latency of one image over three vocabularies, where few and where all scores pass the threshold."""
    image = made_up_images(1, SIZE)

    def ours(num_classes: int, all_pass: bool) -> Callable[[], object]:
        settings = vocabulary(model, image, num_classes, all_pass)

        def run() -> object:
            use_vocabulary(model, *settings)
            return model(image)

        run()
        return run

    def plain(run: Callable[[], object]) -> Callable[[], object]:
        with_settings = run

        def plain_run() -> object:
            with plain_path(model):
                return with_settings()

        return plain_run

    few, few_huge = ours(SMALL, False), ours(HUGE, False)
    small, huge, plain_small, plain_huge, bf16 = fastest(
        [few, few_huge, plain(few), plain(few_huge), in_precision(model, "bf16", few)],
        0 if options.quick else 90,
        options.device,
        at_least=2,
    )
    records = [
        Record("detection/latency_22k_over_80", huge / small, "x"),
        Record("detection/latency_80_ms", small * 1e3, "ms", plain_small * 1e3, plain_small / small),
        Record("detection/latency_22k_ms", huge * 1e3, "ms", plain_huge * 1e3, plain_huge / huge),
        Record("detection/latency_80_bf16_ms", bf16 * 1e3, "ms", plain_small * 1e3, plain_small / bf16),
    ]
    every, every_huge = ours(SMALL, True), ours(HUGE, True)
    small, huge, plain_small = fastest(
        [every, every_huge, plain(every)],
        0 if options.quick else 60,
        options.device,
        at_least=1 if options.quick else 3,
    )
    records += [
        Record("detection/all_pass_22k_over_80", huge / small, "x"),
        Record("detection/all_pass_80_ms", small * 1e3, "ms", plain_small * 1e3, plain_small / small),
        Record("detection/all_pass_22k_ms", huge * 1e3, "ms"),
    ]
    if not options.quick:
        every_lvis = ours(LVIS, True)
        lvis, plain_lvis = fastest([every_lvis, plain(every_lvis)], 60, options.device)
        records.append(Record("detection/all_pass_1203_ms", lvis * 1e3, "ms", plain_lvis * 1e3, plain_lvis / lvis))
    return records


@torch.no_grad()
def batches(model: nn.Module, options: argparse.Namespace) -> list[Record]:
    """Eight images in one batch against one after the other."""
    images = made_up_images(8, (240, 320) if options.quick else SIZE)
    use_vocabulary(model, *vocabulary(model, images[:1], SMALL, all_pass=False))
    single, together = fastest(
        [lambda: [model([image]) for image in images], lambda: model(images)],
        0 if options.quick else 60,
        options.device,
        at_least=1 if options.quick else 3,
    )
    ratio = single / together
    return [
        Record("detection/batch8_over_single", ratio, "x", ratio=ratio),
        Record("detection/batch8_ms_per_image", together / 8 * 1e3, "ms", single / 8 * 1e3, ratio),
    ]


@torch.no_grad()
def compiled_backbone(model: nn.Module, options: argparse.Namespace) -> list[Record]:
    """``torch.compile`` with static shapes against the backbone as it is used."""
    images = torch.rand(1, 3, *SIZE, device=options.device)
    compiled = torch.compile(model.backbone, dynamic=False)
    began = time.perf_counter()
    compiled(images)
    took = time.perf_counter() - began
    ours, other = fastest([lambda: model.backbone(images), lambda: compiled(images)], 20, options.device)
    return [
        Record("detection/backbone_compiled_ms", other * 1e3, "ms", ours * 1e3, ours / other),
        Record("detection/backbone_compilation_s", took, "s"),
    ]


@torch.no_grad()
def classification_memory(model: nn.Module, options: argparse.Namespace) -> list[Record]:
    """Most memory in tensors at any time of one image's detection, beside the weights."""
    image = made_up_images(1, SIZE)
    peaks = {}
    for num_classes in (SMALL, HUGE):
        settings = vocabulary(model, image, num_classes, all_pass=True)
        use_vocabulary(model, *settings)
        heads_inputs = inputs_of_heads(model, image)
        model.roi_heads._forward_box(*heads_inputs)
        peaks[num_classes] = peak_bytes(lambda: model.roi_heads._forward_box(*heads_inputs)) / 2**20  # noqa: B023
    ratio = peaks[SMALL] / peaks[HUGE]
    return [
        Record("detection/box_heads_peak_mb_80", peaks[SMALL], "MB"),
        Record("detection/box_heads_peak_mb_22k", peaks[HUGE], "MB", peaks[SMALL], ratio),
    ]


def training(folder: Path, options: argparse.Namespace) -> list[Record]:
    """Forward and backward over 1203 classes with the federated loss against 80 classes without it."""
    size = (192, 256) if options.quick else SIZE
    runs = []
    for num_classes in (SMALL, LVIS):
        model = make_model(num_classes, folder, options.device, federated=num_classes == LVIS).train()
        runs.append(training_step(model, made_up_images(1, size, objects=4)))
    small, lvis = fastest(runs, 0 if options.quick else 90, options.device, at_least=2)
    return [
        Record("detection/training_1203_over_80", lvis / small, "x"),
        Record("detection/training_step_1203_ms", lvis * 1e3, "ms", small * 1e3, small / lvis),
    ]


def in_precision(model: nn.Module, precision: str, run: Callable[[], object]) -> Callable[[], object]:
    """``run`` with MODEL.INFERENCE_PRECISION."""

    def changed() -> object:
        model.inference_dtype = model.roi_heads.inference_dtype = PRECISIONS[precision]
        try:
            return run()
        finally:
            model.inference_dtype = model.roi_heads.inference_dtype = None

    return changed


@contextmanager
def plain_path(model: nn.Module) -> Iterator[None]:
    """While this lasts, the model works as published."""
    heads, bottom_up = model.roi_heads, model.backbone.bottom_up
    folded = bottom_up._inference
    bottom_up._inference = lambda network, images: network(images)
    heads._forward_box = lambda features, proposals, **_: CustomCascadeROIHeads._forward_box(heads, features, proposals)
    heads._forward_mask = lambda features, instances: CascadeROIHeads._forward_mask(heads, features, instances)
    try:
        with mock.patch.object(ROIAlign, "forward", pool_as_published):
            yield
    finally:
        bottom_up._inference = folded
        del heads._forward_box, heads._forward_mask


def pool_as_published(self: ROIAlign, input: Tensor, rois: Tensor) -> Tensor:
    return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)


def vocabulary(
    model: nn.Module, image: list[dict[str, Any]], num_classes: int, all_pass: bool
) -> tuple[list[Tensor], int, float]:
    """Classifier columns, number of classes, and the bias with which all scores pass, or about `FEW`."""
    reset_cls_test(model, made_up_classes(num_classes).to(model.device), num_classes)
    columns = [predictor.cls_score.zs_weight for predictor in box_predictors(model)]
    if all_pass:
        return columns, num_classes, 5.0
    features, proposals = inputs_of_heads(model, image)
    heads, predictor = model.roi_heads, box_predictors(model)[0]
    regions = heads._region_features([features[name] for name in heads.box_in_features], proposals, 0)
    logits = predictor.cls_score.region_features(regions.flatten(1)) @ columns[0][:, :-1]
    scores = torch.cat([each.scores for each in proposals])[:, None]
    needed = torch.logit((3 * predictor.test_score_thresh**2 / scores).clamp(max=0.99))  # in one of three stages
    # What a bias must add for the best pairs to pass.
    gaps = (needed - logits).flatten().topk(FEW, largest=False).values
    return columns, num_classes, gaps[-1].item()


@torch.no_grad()
def use_vocabulary(model: nn.Module, columns: Sequence[Tensor], num_classes: int, bias: float) -> None:
    """Make the model detect these classes."""
    for predictor, weight in zip(box_predictors(model), columns, strict=True):
        predictor.cls_score.set_weight(weight)
        predictor.cls_score.cls_bias.fill_(bias)
        predictor.num_classes = num_classes
    model.roi_heads.num_classes = num_classes


def inputs_of_heads(model: nn.Module, image: list[dict[str, Any]]) -> tuple[dict[str, Tensor], list[Instances]]:
    """Feature maps and proposals."""
    images = model.preprocess_image(image)
    features = model.backbone(images.tensor)
    return features, model.proposal_generator(images, features, None)[0]


if __name__ == "__main__":
    sys.exit(main())
