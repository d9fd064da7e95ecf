"""Open-vocabulary segmentation: time against inference as published, agreement of labels, memory of vocabularies.

    python tools/benchmarks/segmentation.py [--quick] [--json FILE] [--device cpu|cuda]

R101c, ViT-B/16 and 171 classes with random weights on a made-up scene, 100 queries at 640 x 480 (``--quick``: 24 at
320 x 256). No mask is empty, and where nothing else is said every mask is looked at by CLIP, as in the reference.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _package_first  # noqa: F401  (before anything of ours)
import torch
from _published_segmentation import as_published, build_segmenter, make_scene
from _records import Record, parse_arguments, report
from torch import Tensor
from torch.nn import functional as F

from prompt_pretrain.clip import load_clip
from prompt_pretrain.shapeworld.classes import things
from prompt_pretrain.shapeworld.scene_masks import is_recognisable, visible_mask
from prompt_pretrain.shapeworld.scenes import class_mix, plan_scene, render_scene
from segmentation.clip_adapter import MaskFormerClipAdapter
from segmentation.label_inference import PixelWeights, label_map
from segmentation.mask_pooling import MaskPoolingClipAdapter
from segmentation.prompt_learners import PredefinedPrompts
from segmentation.zero_shot_mask_former import ZeroShotMaskFormer


def main() -> int:
    options = parse_arguments(__doc__)
    torch.manual_seed(0)
    queries, size = (24, (256, 320)) if options.quick else (100, (480, 640))
    model = build_segmenter(options.device, queries)
    record = make_scene(model, size, seed=1)
    records = inference_records(model, record, repeats=1 if options.quick else 2)
    records += pooling_records(model, record)
    if not options.quick:
        records += batch_records(model, [record, make_scene(model, size, seed=2)])
        records += empty_mask_records(model, make_scene(model, size, seed=3, empty=40))
    records += accuracy_records(scenes=20 if options.quick else 300)
    records += vocabulary_records(options.quick, options.device)
    report(records, options.json)
    return 0


# End of a record's name -> precision in which crops are encoded, and LABELS_IN_DOUBT where only labels are asked for.
MODES: dict[str, tuple[str, float | None]] = {
    "": ("bf16", None),
    "_fp32": ("fp32", None),
    "_labels_only_fp32": ("fp32", 0.0),
    "_labels_in_doubt_fp32": ("fp32", 5e-4),
    "_labels_in_doubt": ("bf16", 5e-4),
}


def inference_records(model: ZeroShotMaskFormer, record: dict[str, Any], repeats: int) -> list[Record]:
    """Each mode against the published path on one image."""
    model.sem_seg_head.scenes = [record["scene"]]
    reference, scores = timed(lambda: as_published(model, record), model, repeats)
    expected = scores.argmax(0)
    found = []
    for suffix, (precision, doubt) in MODES.items():
        seconds, labels, looks = run_mode(model, [record], precision, doubt, repeats)
        ratio = reference / seconds
        found += [
            Record(f"segmentation/inference_ratio{suffix}", ratio, "x", ratio=ratio),
            Record(f"segmentation/inference_seconds{suffix}", seconds, "s", reference, ratio),
            Record(f"segmentation/label_agreement{suffix}", agreement(labels[0], expected), "fraction"),
        ]
        if doubt is not None:
            found.append(Record(f"segmentation/crops{suffix}", looks, "crops", len(record["scene"]["pred_masks"])))
    return found


def pooling_records(model: ZeroShotMaskFormer, record: dict[str, Any]) -> list[Record]:
    """The classifier that pools features of one pass by mask; the reference is looking at crops, both in float32.

    Random weights say nothing of its accuracy: see :func:`accuracy_records`.
    """
    crops = model.clip_adapter
    seconds, _, _ = run_mode(model, [record], "fp32", None)
    pooling = MaskPoolingClipAdapter(crops.clip, crops.prompt_learner).to(model.device)
    names, _ = model.vocabulary.of([record])
    pooling.set_text_features(names, crops.text_features(names))
    model._region_clip_adapter = pooling
    try:
        pooled, _, _ = run_mode(model, [record], "fp32", None)
    finally:
        del model._region_clip_adapter
    return [Record("segmentation/mask_pooling_seconds_fp32", pooled, "s", seconds, seconds / pooled)]


def accuracy_records(scenes: int) -> list[Record]:
    """Share of the true masks of ShapeWorld's scenes that its trained CLIP classifies rightly among all its things."""
    clip = load_clip("shapeworld-tiny")
    mix = class_mix(things("base"), things("novel"), "val")
    names = [thing.name for thing in mix.things]
    learner = PredefinedPrompts(["a picture of a {}."])
    # bf16 encodes the same crops.
    adapters = {
        "crops": MaskFormerClipAdapter(clip, learner, region_size=64),
        "crops_bf16": MaskFormerClipAdapter(clip, learner, region_size=64, region_precision="bf16"),
        "mask_pooling": MaskPoolingClipAdapter(clip, learner, region_size=64),
    }
    right, total = dict.fromkeys(adapters, 0), 0
    for index in range(scenes):
        scene = render_scene(plan_scene(index, mix, split="val"), 192)
        shown = [place for place in range(len(scene.plan.things)) if is_recognisable(scene, place)]
        if not shown:
            continue
        image = torch.from_numpy(scene.pixels).permute(2, 0, 1).float()
        masks = torch.stack([torch.from_numpy(visible_mask(scene, [place])) for place in shown]).float()
        labels = torch.tensor([scene.plan.things[place].label for place in shown])
        total += len(shown)
        for name, adapter in adapters.items():
            logits, _ = adapter(image, names, masks)
            right[name] += int((logits[:, :-1].argmax(1) == labels).sum())
    reference = right["crops"] / total
    return [
        Record(f"segmentation/{name}_accuracy", count / total, "fraction", reference, count / right["crops"])
        for name, count in right.items()
    ]


def batch_records(model: ZeroShotMaskFormer, records: list[dict[str, Any]]) -> list[Record]:
    """Two images whose crops are encoded together, against one after the other."""
    separate = sum(run_mode(model, [record], "bf16", None)[0] for record in records)
    together, _, _ = run_mode(model, records, "bf16", None)
    ratio = separate / together
    return [Record("segmentation/two_images_together", together, "s", separate, ratio)]


def empty_mask_records(model: ZeroShotMaskFormer, record: dict[str, Any]) -> list[Record]:
    """A scene where 40 masks have no pixel, in float32: those cost nothing and change nothing."""
    model.sem_seg_head.scenes = [record["scene"]]
    reference, scores = timed(lambda: as_published(model, record), model, 1)
    seconds, labels, looks = run_mode(model, [record], "fp32", None)
    return [
        Record("segmentation/empty_masks_seconds_fp32", seconds, "s", reference, reference / seconds),
        Record("segmentation/empty_masks_label_agreement_fp32", agreement(labels[0], scores.argmax(0)), "fraction"),
        Record("segmentation/empty_masks_crops", looks, "crops", len(record["scene"]["pred_masks"])),
    ]


def vocabulary_records(quick: bool, device: str) -> list[Record]:
    """Peak memory and time from masks and class scores to labels, where the reference is the map of all scores."""
    size = (256, 320) if quick else (480, 640)
    blobs = torch.randn(1, 100, 6, 8, device=device)
    masks = F.interpolate(4 * blobs - 2, size, mode="bicubic")[0].sigmoid()
    weights = PixelWeights(masks, size)
    found = []
    for classes in (171, 22000):
        scores = (4.4 * torch.randn(100, classes, device=device)).softmax(-1)  # as spread as CLIP's logits are
        megabytes, seconds = peak_megabytes(lambda scores=scores: label_map(scores, weights), device)
        name, dense = f"segmentation/label_map_{classes}_classes", classes * size[0] * size[1] * 4 / 2**20
        found.append(Record(f"{name}_seconds", seconds, "s"))
        if megabytes:
            found.append(Record(f"{name}_peak_mb", megabytes, "MB", dense, dense / megabytes))
    return found


def run_mode(
    model: ZeroShotMaskFormer, records: list[dict[str, Any]], precision: str, doubt: float | None, repeats: int = 1
) -> tuple[float, list[Tensor], int]:
    """Seconds, label maps and the number of crops that CLIP looked at."""
    adapter = model.region_clip_adapter
    adapter.region_precision = precision
    model.labels_only, model.labels_in_doubt = doubt is not None, doubt or 0.0
    model.sem_seg_head.scenes = [record["scene"] for record in records]
    encode, looks = adapter.encode_image, []

    def counted(images: Tensor, **arguments: Any) -> Tensor:
        looks.append(len(images))
        return encode(images, **arguments)

    warm = torch.zeros(1, 3, 224, 224, device=model.device)
    adapter.encode_image(warm, precision=precision)  # packs the weights, once for a model's life
    adapter.encode_image = counted
    try:
        seconds, outputs = timed(lambda: infer(model, records), model, repeats)
    finally:
        del adapter.encode_image
    labels = [x["labels"] if model.labels_only else x["sem_seg"].argmax(0) for x in outputs]
    return seconds, labels, sum(looks) // repeats


@torch.no_grad()
def infer(model: ZeroShotMaskFormer, records: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    return model(records)


def agreement(labels: Tensor, expected: Tensor) -> float:
    return float((labels == expected).double().mean())


def timed(run: Callable[[], Any], model: ZeroShotMaskFormer, repeats: int) -> tuple[float, Any]:
    """Shortest time in seconds, and the last result."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best, result


def peak_megabytes(run: Callable[[], object], device: str) -> tuple[float, float]:
    """Memory that ``run`` adds at its peak, 0 where the system does not tell, and its seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # start the peak again
        before = _status("VmRSS")
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20, time.perf_counter() - start
    seconds = time.perf_counter() - start
    return (_status("VmHWM") - before) / 2**20 if sys.platform == "linux" else 0.0, seconds


def _status(field: str) -> int:
    """Bytes of a field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    sys.exit(main())
