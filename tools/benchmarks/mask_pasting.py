"""Mask pasting: detectron2's ``paste_masks_in_image`` of the bundled runtime against torchvision's.

    python tools/benchmarks/mask_pasting.py [--quick] [--json FILE] [--device cpu|cuda]

Masks of 28 × 28 into boxes of small, middle and large size on a 800 × 1333 image; ratios above 1 are in our favour.
"""

import sys

import torch
from _records import Record, best_seconds, parse_arguments, report
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image as torchvision_paste

import third_party  # noqa: F401  makes the bundled detectron2 importable
from detectron2.layers import paste_masks_in_image

IMAGE = (800, 1333)  # height, width
SIDES = {"small": (10, 100), "middle": (50, 400), "large": (300, 1200)}  # of the boxes, in pixels


def main() -> int:
    options = parse_arguments(__doc__)
    generator = torch.Generator().manual_seed(0)
    records = []
    for name, sides in SIDES.items():
        masks, boxes = (x.to(options.device) for x in made_up(20 if options.quick else 100, sides, generator))
        repeats = 3 if options.quick else 10
        ours = best_seconds(lambda: paste_masks_in_image(masks, boxes, IMAGE, 0.5), repeats, options.device)  # noqa: B023
        theirs = best_seconds(
            lambda: torchvision_paste(masks[:, None], boxes, IMAGE) >= 0.5,  # noqa: B023
            repeats,
            options.device,
        )
        records.append(Record(f"detectron2/mask_pasting_{name}_ms", ours * 1e3, "ms", theirs * 1e3, theirs / ours))
    report(records, options.json)
    return 0


def made_up(count: int, sides: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random masks (n, 28, 28) and boxes (n, 4) that lie at least partly in the image."""
    height, width = IMAGE
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    side = sides[0] + (sides[1] - sides[0]) * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1)
    boxes[:, 0::2].clamp_(0, width)
    boxes[:, 1::2].clamp_(0, height)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] > 1).all(dim=1)]
    return torch.rand(len(boxes), 28, 28, generator=generator), boxes


if __name__ == "__main__":
    sys.exit(main())
