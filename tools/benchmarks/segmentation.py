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

from segmentation.label_inference import PixelWeights, label_map
from segmentation.zero_shot_mask_former import ZeroShotMaskFormer


def main() -> int:
    options = parse_arguments(__doc__)
    torch.manual_seed(0)
    queries, size = (24, (256, 320)) if options.quick else (100, (480, 640))
    model = build_segmenter(options.device, queries)
    record = make_scene(model, size, seed=1)
    records = inference_records(model, record, repeats=1 if options.quick else 2)
    if not options.quick:
        records += batch_records(model, [record, make_scene(model, size, seed=2)])
        records += empty_mask_records(model, make_scene(model, size, seed=3, empty=40))
    records += vocabulary_records(options.quick, options.device)
    report(records, options.json)
    return 0


MODES = {  # by the end of a record's name: precision of the encoding of crops, and whether labels are all that is asked
    "": ("bf16", False),
    "_fp32": ("fp32", False),
    "_labels_only": ("bf16", True),
    "_labels_only_fp32": ("fp32", True),
}


def inference_records(model: ZeroShotMaskFormer, record: dict[str, Any], repeats: int) -> list[Record]:
    """Each mode against the published path on one image."""
    model.sem_seg_head.scenes = [record["scene"]]
    reference, scores = timed(lambda: as_published(model, record), model, repeats)
    expected = scores.argmax(0)
    found = []
    for suffix, (precision, labels_only) in MODES.items():
        seconds, labels, looks = run_mode(model, [record], precision, labels_only, repeats)
        ratio = reference / seconds
        found += [
            Record(f"segmentation/inference_ratio{suffix}", ratio, "x", ratio=ratio),
            Record(f"segmentation/inference_seconds{suffix}", seconds, "s", reference, ratio),
            Record(f"segmentation/label_agreement{suffix}", agreement(labels[0], expected), "fraction"),
        ]
        if labels_only:
            found.append(Record(f"segmentation/crops{suffix}", looks, "crops", len(record["scene"]["pred_masks"])))
    return found


def batch_records(model: ZeroShotMaskFormer, records: list[dict[str, Any]]) -> list[Record]:
    """Two images whose crops are encoded together, against one after the other."""
    separate = sum(run_mode(model, [record], "bf16", False)[0] for record in records)
    together, _, _ = run_mode(model, records, "bf16", False)
    ratio = separate / together
    return [Record("segmentation/two_images_together", together, "s", separate, ratio)]


def empty_mask_records(model: ZeroShotMaskFormer, record: dict[str, Any]) -> list[Record]:
    """A scene where 40 masks have no pixel, in float32: those cost nothing and change nothing."""
    model.sem_seg_head.scenes = [record["scene"]]
    reference, scores = timed(lambda: as_published(model, record), model, 1)
    seconds, labels, looks = run_mode(model, [record], "fp32", False)
    return [
        Record("segmentation/empty_masks_seconds_fp32", seconds, "s", reference, reference / seconds),
        Record("segmentation/empty_masks_label_agreement_fp32", agreement(labels[0], scores.argmax(0)), "fraction"),
        Record("segmentation/empty_masks_crops", looks, "crops", len(record["scene"]["pred_masks"])),
    ]


def vocabulary_records(quick: bool, device: str) -> list[Record]:
    """Peak memory and time from masks and class scores to labels, where the reference is the map of all scores."""
    size = (256, 320) if quick else (480, 640)
    weights = PixelWeights(torch.rand(100, *size, device=device), size)
    found = []
    for classes in (171, 22000):
        scores = torch.rand(100, classes, device=device)
        megabytes, seconds = peak_megabytes(lambda scores=scores: label_map(scores, weights), device)
        name, dense = f"segmentation/label_map_{classes}_classes", classes * size[0] * size[1] * 4 / 2**20
        found.append(Record(f"{name}_seconds", seconds, "s"))
        if megabytes:
            found.append(Record(f"{name}_peak_mb", megabytes, "MB", dense, dense / megabytes))
    return found


def run_mode(
    model: ZeroShotMaskFormer, records: list[dict[str, Any]], precision: str, labels_only: bool, repeats: int = 1
) -> tuple[float, list[Tensor], int]:
    """Seconds, label maps and the number of crops that CLIP looked at."""
    adapter = model.region_clip_adapter
    adapter.region_precision, model.labels_only = precision, labels_only
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
    labels = [x["labels"] if labels_only else x["sem_seg"].argmax(0) for x in outputs]
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
