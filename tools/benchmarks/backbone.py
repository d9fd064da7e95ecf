"""ResNet-50 with FPN: our backbone against torchvision's of the same size and weights.

    python tools/benchmarks/backbone.py [--quick] [--json FILE] [--device cpu|cuda]

Prints time for one batch, for inference and for training (forward and backward, two stages frozen), the ratio to
torchvision's, and how far the outputs differ. Above 1 is faster than torchvision.
"""

import sys

import torch
from _records import Record, fastest, parse_arguments, report
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import third_party  # noqa: F401  makes detectron2 importable
from detectron2.config import get_cfg
from detectron2.modeling import Backbone, build_backbone


def main() -> int:
    options = parse_arguments(__doc__)
    torch.manual_seed(0)
    if options.device == "cuda":
        batch, size = (4, (512, 672)) if options.quick else (8, (800, 1088))
    else:
        batch, size = (1, (192, 256)) if options.quick else (1, (800, 1088))
    seconds = 15 if options.quick else 90
    ours, theirs = make_pair(options.device)
    images = torch.randn(batch, 3, *size, device=options.device)

    with torch.no_grad():
        difference = largest_difference(ours(images), theirs(images))
        inference = fastest([lambda: ours(images), lambda: theirs(images)], seconds, options.device)
    training = fastest([lambda: step(ours, images), lambda: step(theirs, images)], seconds, options.device)
    records = [Record("detectron2/resnet50_fpn_max_difference", difference, "relative")]
    for name, (value, reference) in (("resnet50_fpn", inference), ("resnet50_fpn_training", training)):
        ratio = reference / value
        records.append(Record(f"detectron2/{name}_ratio", ratio, "x", ratio=ratio))
        records.append(Record(f"detectron2/{name}_ms", value * 1e3, "ms", reference * 1e3, ratio))
    report(records, options.json)
    return 0


def make_pair(device: str) -> tuple[Backbone, nn.Module]:
    """Our backbone and torchvision's, with the same weights, both in evaluation mode with frozen batch norms."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    ours = build_backbone(cfg)
    theirs = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    theirs.load_state_dict({torchvision_name(name): value for name, value in ours.state_dict().items()})
    return ours.to(device).eval(), theirs.to(device).eval()


def torchvision_name(name: str) -> str:
    """Our entry ``bottom_up.res3.0.conv2.norm.bias`` in torchvision's words, ``body.layer2.0.bn2.bias``."""
    for k in range(2, 6):
        name = name.replace(f"fpn_lateral{k}.", f"fpn.inner_blocks.{k - 2}.0.")
        name = name.replace(f"fpn_output{k}.", f"fpn.layer_blocks.{k - 2}.0.")
        name = name.replace(f"bottom_up.res{k}.", f"body.layer{k - 1}.")
    name = name.replace("bottom_up.stem.", "body.").replace("shortcut.norm", "downsample.1")
    name = name.replace("shortcut", "downsample.0")
    for i in range(1, 4):
        name = name.replace(f"conv{i}.norm", f"bn{i}")
    return name


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference of two outputs relative to the largest value of each, over all levels."""
    pairs = zip(ours.values(), theirs.values(), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def step(model: nn.Module, images: Tensor) -> None:
    """Forward and backward of one training step."""
    model.zero_grad()
    sum(output.mean() for output in model(images).values()).backward()


if __name__ == "__main__":
    sys.exit(main())
