"""A small ``CustomRCNN`` with five classes, and inputs of every kind of annotation for it."""

from pathlib import Path
from typing import Any

import torch

from detection.meta_arch import CustomRCNN
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from tests.detection.released_models import released_config, write_embeddings
from tests.golden_recipes import write_category_counts

NUM_CLASSES = 5
WIDTH = 8  # of the class embeddings
COUNTS = (3, 0, 20, 7, 100)  # images of each class
_SMALL = {
    "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
    "MODEL.CENTERNET.NUM_CLASSES": NUM_CLASSES,
    "MODEL.CENTERNET.POST_NMS_TOPK_TRAIN": 8,
    "MODEL.CENTERNET.POST_NMS_TOPK_TEST": 8,
    "MODEL.TIMM.BASE_NAME": "resnet18",
    "MODEL.FPN.OUT_CHANNELS": 64,  # two per group of the norms: one would not do on maps of one pixel
    "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
    "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM": WIDTH,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CAT": 3,
    "MODEL.MASK_ON": False,
    "FP16": False,
}


def small_config(folder: Path, **overrides: Any) -> CfgNode:
    """Settings of a released Detic on a small scale; in names of ``overrides`` ``__`` stands for a dot."""
    embeddings = write_embeddings(folder / "embeddings.npy", 1, NUM_CLASSES, WIDTH)
    files = {
        "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH": str(embeddings),
        "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH": str(write_category_counts(folder / "counts.json", COUNTS)),
    }
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    device = given.pop("MODEL.DEVICE", "cpu")
    return released_config("Detic_LbaseI_CLIP_R5021k_640b64_4x_ft4x_max-size", _SMALL | files | given, device)


def small_model(folder: Path, **overrides: Any) -> CustomRCNN:
    torch.manual_seed(0)
    return build_model(small_config(folder, **overrides))


def small_input(ann_type: str = "box", seed: int = 0, **fields: Any) -> dict[str, Any]:
    """An image with two boxes, of classes 2 and 4, or, for annotations of the image, without."""
    size = (64, 96)
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [30.0, 10.0, 90.0, 60.0]])
    target = Instances(size)
    with_boxes = ann_type in ("box", "prop", "proptag")
    target.gt_boxes = Boxes(boxes if with_boxes else boxes[:0])
    target.gt_classes = torch.tensor([2, 4] if with_boxes else [], dtype=torch.int64)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)) * 255
    entry = {"image": image, "instances": target, "ann_type": ann_type, "file_name": f"{seed}.jpg"}
    return entry | {"pos_category_ids": [] if with_boxes else [1, 3], "dataset_source": int(not with_boxes)} | fields
