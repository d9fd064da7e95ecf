"""A detector with random weights, and images for it, whose activations and losses have ordinary sizes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from centernet.config import add_centernet_config
from detection.config import add_detic_config
from detection.reset_classifier import reset_cls_test
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "detection" / "BoxSup-C2_L_CLIP_R5021k_640b64_4x.yaml"
SIZE = (480, 640)  # height, width
WIDTH = 512  # of class embeddings
# Factors and values that give random weights features, boxes and scores of ordinary size.
ADJUSTMENTS = {
    "backbone.fpn_lateral": ("mul_", 0.003),
    "bbox_pred.2": ("mul_", 0.2),
    "centernet_head.bbox_pred.bias": ("fill_", 2.0),
    "agn_hm.weight": ("mul_", 2.0),
    "agn_hm.bias": ("fill_", -2.0),
    "mask_head.predictor.weight": ("mul_", 4.0),
}


def make_model(num_classes: int, folder: Path, device: str, *, federated: bool = False) -> nn.Module:
    """Detic R50 with random weights."""
    counts = folder / f"{num_classes}.json"
    counts.write_text(json.dumps([{"id": i + 1, "image_count": i % 300 + 1} for i in range(num_classes)]))
    cfg = config(
        {
            "MODEL.DEVICE": device,
            "MODEL.ROI_HEADS.NUM_CLASSES": num_classes,
            "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH": "rand",
            "MODEL.ROI_BOX_HEAD.USE_BIAS": -1.0,
            "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH": str(counts),
            "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": federated,
            "FP16": False,
        }
    )
    model = build_model(cfg)
    fill(model)
    reset_cls_test(model, made_up_classes(num_classes).to(device), num_classes)
    return model


def config(settings: Mapping[str, Any]) -> CfgNode:
    cfg = get_cfg()
    add_centernet_config(cfg)
    add_detic_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list([part for setting in settings.items() for part in setting])
    return cfg


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Random weights that keep activations at unit scale."""
    generator = torch.Generator().manual_seed(0)
    for name, entry in model.state_dict().items():
        if entry.dim() > 1 and not name.endswith("zs_weight"):
            values = torch.randn(entry.shape, generator=generator) * (2 / entry[0].numel()) ** 0.5
            entry.copy_(values)
        for part, (operation, number) in ADJUSTMENTS.items():
            if part in name and entry.is_floating_point():
                getattr(entry, operation)(number)


def made_up_classes(num_classes: int) -> Tensor:
    """(D, C) random directions."""
    return torch.randn(WIDTH, num_classes, generator=torch.Generator().manual_seed(num_classes))


def made_up_images(count: int, size: tuple[int, int], objects: int = 0) -> list[dict[str, Any]]:
    """Inputs of the model: noise over tiles, and as many made-up objects."""
    generator = torch.Generator().manual_seed(1)
    height, width = size
    inputs = []
    for _ in range(count):
        tiles = torch.rand(1, 3, height // 16, width // 16, generator=generator)
        coarse = nn.functional.interpolate(tiles, size=size)[0]
        image = 255 * (0.75 * coarse + 0.25 * torch.rand(3, height, width, generator=generator))
        entry: dict[str, Any] = {"image": image, "height": height, "width": width}
        if objects:
            corner = torch.rand(objects, 2, generator=generator) * 0.5
            shares = torch.cat([corner, corner + 0.1 + 0.4 * torch.rand(objects, 2, generator=generator)], dim=1)
            boxes = shares * torch.tensor([width, height, width, height])
            masks = torch.zeros(objects, height, width, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
                mask[y0:y1, x0:x1] = True
            entry["instances"] = Instances(size)
            entry["instances"].gt_boxes = Boxes(boxes)
            entry["instances"].gt_classes = torch.arange(objects)
            entry["instances"].gt_masks = BitMasks(masks)
        inputs.append(entry)
    return inputs


def training_step(model: nn.Module, inputs: list[dict[str, Any]]) -> Callable[[], None]:
    """Forward and backward, of any model that gives losses."""

    def step() -> None:
        model.zero_grad()
        with EventStorage():
            sum(model(inputs).values()).backward()

    return step
