"""A Deformable DETR small enough for tests: ResNet-18, 64 channels, one or two layers."""

from typing import Any

import torch
from torch import nn

import detection.deformable_detr  # noqa: F401  registers the model
from centernet.config import add_centernet_config
from detection.config import add_detic_config
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

NUM_CLASSES = 7


def tiny_config(*options: Any) -> CfgNode:
    cfg = get_cfg()
    add_centernet_config(cfg)
    add_detic_config(cfg)
    settings = ["MODEL.META_ARCHITECTURE", "DeformableDetr", "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", False]
    settings += ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "FrozenBN"]
    settings += ["MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.BACKBONE.FREEZE_AT", 0]
    settings += ["MODEL.DETR.HIDDEN_DIM", 64, "MODEL.DETR.NHEADS", 4, "MODEL.DETR.DIM_FEEDFORWARD", 48]
    settings += ["MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2, "MODEL.DETR.NUM_CLASSES", NUM_CLASSES]
    settings += ["MODEL.DETR.NUM_OBJECT_QUERIES", 10, "MODEL.DETR.TWO_STAGE", True, "MODEL.DETR.WITH_BOX_REFINE", True]
    settings += ["MODEL.DETR.DROPOUT", 0.0, "TEST.DETECTIONS_PER_IMAGE", 12]
    cfg.merge_from_list([*settings, *options])
    return cfg


def tiny_model(*options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(tiny_config(*options))


def made_up_inputs(*sizes: tuple[int, int], objects: int = 2) -> list[dict[str, Any]]:
    """One input per (height, width) with as many ``objects``; the same ones in every run."""
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for height, width in sizes:
        target = Instances((height, width))
        corner = torch.rand(objects, 2, generator=generator) * 0.5
        boxes = torch.cat([corner, corner + 0.3], dim=1) * torch.tensor([width, height, width, height])
        target.gt_boxes = Boxes(boxes)
        target.gt_classes = torch.randint(NUM_CLASSES, (objects,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator).float()
        inputs.append({"image": image, "instances": target, "height": height, "width": width})
    return inputs
