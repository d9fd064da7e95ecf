"""Region pooling: detectron2's ``ROIAlign`` of the bundled runtime against torchvision's, with gradients and without.

    python tools/benchmarks/region_pooling.py [--quick] [--json FILE] [--device cpu|cuda]

Regions of two images on 256 channels, as in a box head (7 × 7) and in a mask head (14 × 14); ratios above 1 are in our
favour.
"""

import sys
from collections.abc import Callable

import torch
from _records import Record, fastest, parse_arguments, report
from torch import Tensor
from torchvision.ops import roi_align

import third_party  # noqa: F401  makes the bundled detectron2 importable
from detectron2.layers import ROIAlign

CHANNELS, STRIDE = 256, 8
CASES = {"box": (7, 512), "mask": (14, 128)}  # bins along a side, regions


def main() -> int:
    options = parse_arguments(__doc__)
    height, width = (40, 56) if options.quick else (100, 160)
    records = []
    for name, (bins, count) in CASES.items():
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(2, CHANNELS, height, width, generator=generator).to(options.device).requires_grad_()
        regions = made_up(count, height, width, generator).to(options.device)
        pooler = ROIAlign(bins, 1 / STRIDE, 0)

        def ours(features: Tensor = features, regions: Tensor = regions, pooler: ROIAlign = pooler) -> Tensor:
            return pooler(features, regions)

        def theirs(features: Tensor = features, regions: Tensor = regions, bins: int = bins) -> Tensor:
            return roi_align(features, regions, bins, 1 / STRIDE, 0, True)

        for kind, runs in (
            ("", [without_gradients(ours), without_gradients(theirs)]),
            ("training_", [with_gradients(ours, features), with_gradients(theirs, features)]),
        ):
            own, reference = fastest(runs, 1 if options.quick else 5, options.device)
            label = f"detectron2/region_pooling_{kind}{name}_ms"
            records.append(Record(label, own * 1e3, "ms", reference * 1e3, reference / own))
    report(records, options.json)
    return 0


def without_gradients(pool: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return torch.no_grad()(pool)


def with_gradients(pool: Callable[[], Tensor], features: Tensor) -> Callable[[], None]:
    gradient = torch.ones_like(pool())

    def run() -> None:
        features.grad = None
        pool().backward(gradient)

    return run


def made_up(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Regions (n, 5) of two images, of 7 to 28 cells, as a level of a pyramid gets them."""
    limits = torch.tensor([width, height])
    sides = 7 + 21 * torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (limits - sides)
    image = torch.randint(2, (count, 1), generator=generator)
    return torch.cat([image, corner * STRIDE, (corner + sides) * STRIDE], dim=1)


if __name__ == "__main__":
    sys.exit(main())
