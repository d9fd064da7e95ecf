"""Config keys of CenterNet2, with the published names, types and defaults."""

from detectron2.config import CfgNode

__all__ = ["add_centernet_config"]


def add_centernet_config(cfg: CfgNode) -> None:
    """Add the keys in place. Call it before Detic's own hook, which changes ``CAT_FREQ_PATH``, and before any merge."""
    _add_dense_head(cfg)
    _add_roi_heads(cfg)
    _add_backbones(cfg)
    _add_training(cfg)


def _add_dense_head(cfg: CfgNode) -> None:
    cfg.MODEL.CENTERNET = CfgNode(
        {
            # --- network
            "NUM_CLASSES": 80,  # channels of the class heatmap; unused with ONLY_PROPOSAL
            "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "FPN_STRIDES": [8, 16, 32, 64, 128],  # of IN_FEATURES, in pixels
            "PRIOR_PROB": 0.01,  # of an object at a location before training: biases of the heatmaps
            "NORM": "GN",  # in the towers; "" for none. GN has 32 groups, or 25 where 32 does not divide the channels
            "USE_DEFORMABLE": False,  # the last convolution of each tower is a modulated deformable one
            "NUM_CLS_CONVS": 4,  # depths of the towers
            "NUM_BOX_CONVS": 4,
            "NUM_SHARE_CONVS": 0,
            "WITH_AGN_HM": False,  # a heatmap of objects of any class
            "ONLY_PROPOSAL": False,  # no class heatmap at all; needs WITH_AGN_HM
            "AS_PROPOSAL": False,  # detections with a class serve as proposals
            # --- targets
            "SOI": [[0, 80], [64, 160], [128, 320], [256, 640], [512, 10000000]],  # half diagonals per level, pixels
            "HM_MIN_OVERLAP": 0.8,  # overlap that sets the width of the Gaussian round a centre
            "MIN_RADIUS": 4,  # lower bound of its radius, in pixels
            "MORE_POS": False,  # also learn from locations next to a centre where the predicted box is already good
            "MORE_POS_THRESH": 0.2,  # its loss must be below this ...
            "MORE_POS_TOPK": 9,  # ... and below the k-th smallest of the object
            # --- losses
            "LOC_LOSS_TYPE": "giou",  # "iou", "linear_iou" or "giou"
            "SIGMOID_CLAMP": 1e-4,  # probabilities in the heatmap losses stay this far from 0 and 1
            "HM_FOCAL_ALPHA": 0.25,
            "HM_FOCAL_BETA": 4,
            "LOSS_GAMMA": 2.0,
            "POS_WEIGHT": 1.0,
            "NEG_WEIGHT": 1.0,
            "REG_WEIGHT": 2.0,
            "IGNORE_HIGH_FP": -1.0,  # negatives predicted above this are taken for missing labels; off if not positive
            "NOT_NORM_REG": True,  # all box losses weigh the same; otherwise by the heatmap
            "NO_REDUCE": False,  # normalise by the counts of this process, not by the mean over all
            # --- decoding
            "INFERENCE_TH": 0.05,  # score that a candidate must exceed
            "CENTER_NMS": False,  # keep local maxima of the heatmap only, instead of the NMS of boxes
            "NOT_NMS": False,  # no NMS of boxes
            "NMS_TH_TRAIN": 0.6,  # IoU; not positive for no NMS
            "NMS_TH_TEST": 0.6,
            "PRE_NMS_TOPK_TRAIN": 1000,  # per image and level
            "PRE_NMS_TOPK_TEST": 1000,
            "POST_NMS_TOPK_TRAIN": 100,  # per image
            "POST_NMS_TOPK_TEST": 100,
        }
    )


def _add_roi_heads(cfg: CfgNode) -> None:
    head = cfg.MODEL.ROI_BOX_HEAD
    head.USE_SIGMOID_CE = False  # independent classes
    head.PRIOR_PROB = 0.01  # of a class before training, with USE_SIGMOID_CE
    head.USE_EQL_LOSS = False  # has no effect
    head.EQL_FREQ_CAT = 200  # has no effect
    head.CAT_FREQ_PATH = "datasets/lvis/lvis_v1_train_cat_info.json"  # list of objects with "id" and "image_count"
    head.USE_FED_LOSS = False  # the classes of a batch and some random others enter the loss
    head.FED_LOSS_NUM_CAT = 50  # how many in all
    head.FED_LOSS_FREQ_WEIGHT = 0.5  # drawn in proportion to image_count to this power
    head.MULT_PROPOSAL_SCORE = False  # score = sqrt(score of the class x score of the proposal)


def _add_backbones(cfg: CfgNode) -> None:
    cfg.MODEL.BIFPN = CfgNode(
        {"NUM_LEVELS": 5, "NUM_BIFPN": 6, "NORM": "GN", "OUT_CHANNELS": 160, "SEPARABLE_CONV": False}
    )
    cfg.MODEL.DLA = CfgNode(
        {
            "OUT_FEATURES": ["dla2"],
            "USE_DLA_UP": True,
            "NUM_LAYERS": 34,
            "MS_OUTPUT": False,
            "NORM": "BN",
            "DLAUP_IN_FEATURES": ["dla3", "dla4", "dla5"],
            "DLAUP_NODE": "conv",
        }
    )


def _add_training(cfg: CfgNode) -> None:
    cfg.SOLVER.RESET_ITER = False  # count iterations from 0 after loading a checkpoint
    cfg.SOLVER.TRAIN_ITER = -1  # last iteration if not negative, otherwise MAX_ITER, which the schedule keeps using
    cfg.INPUT.CUSTOM_AUG = ""  # "", "ResizeShortestEdge" or "EfficientDetResizeCrop"
    cfg.INPUT.TRAIN_SIZE = 640  # of EfficientDetResizeCrop, in pixels
    cfg.INPUT.TEST_SIZE = 640
    cfg.INPUT.SCALE_RANGE = (0.1, 2.0)
    cfg.INPUT.TEST_INPUT_TYPE = "default"  # anything else: CUSTOM_AUG in tests too
    cfg.INPUT.NOT_CLAMP_BOX = False  # boxes may leave the image; their centres are clamped instead
    # Drawing aids of the published code: accepted, without effect.
    cfg.DEBUG = False
    cfg.SAVE_DEBUG = False
    cfg.SAVE_PTH = False
    cfg.DEBUG_SHOW_NAME = False
    cfg.VIS_THRESH = 0.3
