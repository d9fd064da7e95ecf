"""A training step of detector and segmenter: where its time goes.

    python tools/benchmarks/training_step.py [--quick] [--json FILE] [--device cpu|cuda]

The reference of a step is forward and backward of its backbone alone, on the same images in the same run, which is the
limit that the step cannot beat. Tables of torch.profiler follow, by kind of operation.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _package_first  # noqa: F401  (before anything of ours)
import torch
from _made_up_detector import made_up_images, make_model, training_step
from _published_segmentation import make_segmenter
from _records import Record, fastest, parse_arguments, report
from torch import nn
from torch.profiler import ProfilerActivity, profile

from detectron2.structures import ImageList

CLASSES = 1203
OBJECTS = 6
# Kind of operation -> beginnings of the names that torch gives its operators; the first that fits counts.
KINDS = {
    "convolutions": (
        "aten::convolution_backward",
        "aten::mkldnn_convolution",
        "aten::cudnn_convolution",
        "aten::_slow_conv",
    ),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot"),
    "normalisation": ("aten::native_batch_norm", "aten::native_group_norm", "aten::native_layer_norm"),
    "pooling of regions": ("torchvision::",),
    "resizing": ("aten::upsample", "aten::_upsample", "aten::grid_sampl"),
    "copies and fills": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat", "aten::clone"),
    "sorting and selecting": (
        "aten::sort",
        "aten::topk",
        "aten::nonzero",
        "aten::index",
        "aten::gather",
        "aten::scatter",
    ),
}
OTHERS = "element by element and others"


def main() -> int:
    options = parse_arguments(__doc__)
    size = (240, 320) if options.quick else (480, 640)
    count, seconds = 2, 0 if options.quick else 60
    records, tables = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, model, images in (
            ("detection", *detector(Path(folder), options.device, count, size)),
            ("segmentation", *segmenter(options.device, count, size)),
        ):
            step, backbone = training_step(model, images), backbone_step(model, images)
            whole, floor = fastest([step, backbone], seconds, options.device, at_least=2)
            records += [
                Record(f"training/{name}_step_ms", whole * 1e3, "ms", floor * 1e3, floor / whole, floor / whole),
                Record(f"training/{name}_images_per_second", count / whole, "images/s"),
            ]
            tables.append(f"{name}: {', '.join(f'{kind} {share:.0%}' for kind, share in shares(step).items())}")
            del model, step, backbone
    report(records, options.json)
    print("\n".join(tables))
    return 0


def detector(folder: Path, device: str, count: int, size: tuple[int, int]) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Detic R50 with the federated loss."""
    model = make_model(CLASSES, folder, device, federated=True).train()
    return model, made_up_images(count, size, objects=OBJECTS)


def segmenter(device: str, count: int, size: tuple[int, int]) -> tuple[nn.Module, list[dict[str, Any]]]:
    """ZSSeg on R101c, 100 queries."""
    model = make_segmenter(device, queries=100).train()
    images = made_up_images(count, size, objects=OBJECTS)
    for record in images:
        record["instances"].gt_masks = record["instances"].gt_masks.tensor
        record["meta"] = {"dataset_name": "made up"}
    return model, images


def backbone_step(model: nn.Module, images: list[dict[str, Any]]) -> Callable[[], None]:
    """Forward and backward of the backbone on the images as the model pads them."""
    pixels = [image["image"].to(model.pixel_mean.device) for image in images]
    inputs = ImageList.from_tensors(pixels, 32).tensor / 255

    def step() -> None:
        model.zero_grad()
        sum(features.sum() for features in model.backbone(inputs).values()).backward()

    return step


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Kind of operation -> share of the time of one step, largest first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as profiler:
        step()
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        used = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), OTHERS)
        found[kind] = found.get(kind, 0.0) + used
    total = sum(found.values())
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {kind: used / total for kind, used in ordered if used >= 0.01 * total}


if __name__ == "__main__":
    sys.exit(main())
