"""Training on boxes and image labels together, from the mapper to the optimizer, resumed exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detection import training
from detection.task import add_config
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from tests.golden_recipes import write_category_counts

CONFIGS = Path(__file__).parents[3] / "configs" / "detection"


def settings(folder: Path, name: str, output: str, iterations: int) -> CfgNode:
    cfg = get_cfg()
    add_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    embeddings = folder / "embeddings.npy"
    np.save(embeddings, np.random.RandomState(0).standard_normal((4, 16)).astype(np.float16))
    counts = write_category_counts(folder / "counts.json", [5, 3, 2, 1])
    changes = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.BACKBONE.NAME": "build_p67_timm_fpn_backbone",
        "MODEL.TIMM.BASE_NAME": "resnet18",
        "MODEL.FPN.OUT_CHANNELS": 64,
        "MODEL.FPN.IN_FEATURES": ["layer3", "layer4", "layer5"],
        "MODEL.ROI_HEADS.NUM_CLASSES": 4,
        "MODEL.NUM_SAMPLE_CATS": 3,
        "MODEL.MASK_ON": False,
        "MODEL.CENTERNET.POST_NMS_TOPK_TRAIN": 20,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH": str(embeddings),
        "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM": 16,
        "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH": str(counts),
        "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CAT": 3,
        "DATASETS.TRAIN": ("test_boxes", "test_labels"),
        "DATALOADER.DATASET_BS": [1, 2],
        "DATALOADER.DATASET_RATIO": [1, 2],
        "DATALOADER.DATASET_INPUT_SIZE": [64, 32],
        "DATALOADER.USE_TAR_DATASET": False,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.CHECKPOINT_PERIOD": 3,
        "SEED": 2,  # boxes, labels, labels, boxes
        "OUTPUT_DIR": str(folder / output),
    }
    cfg.merge_from_list([part for change in changes.items() for part in change])
    (folder / output).mkdir(exist_ok=True)
    return cfg


def train(cfg: CfgNode, resume: bool = False) -> torch.nn.Module:
    torch.manual_seed(5)
    model = build_model(cfg)
    training.do_train(cfg, model, resume=resume)
    return model


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("Detic_LI_CLIP_R5021k_640b64_4x_ft4x_max-size", id="federated"),
        pytest.param("Detic_LI21k_CLIP_SwinB_896b32_4x_ft4x_max-size", id="dynamic", marks=pytest.mark.slow),
    ],
)
def test_cotraining_resumes_exactly(two_sets: Path, name: str) -> None:
    kinds = []
    cfg = settings(two_sets, name, "whole", 4)
    torch.manual_seed(5)
    model = build_model(cfg)
    model.register_forward_pre_hook(lambda _, inputs: kinds.append({sample["ann_type"] for sample in inputs[0]}))
    training.do_train(cfg, model)
    assert all(len(kind) == 1 for kind in kinds) and set.union(*kinds) == {"box", "image"}

    stopped = settings(two_sets, name, "parts", 4)
    stopped.SOLVER.TRAIN_ITER = 2
    train(stopped)
    (two_sets / "parts" / "last_checkpoint").write_text("model_final.pth")
    resumed = train(settings(two_sets, name, "parts", 4), resume=True)
    for (key, one), other in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
