"""Every default config key; the type of a default decides what may be merged over it.

Keys of parts that are left out are here too, so that any published YAML merges.
"""

from detectron2.config.config import CfgNode

_DEFAULTS = {
    "CUDNN_BENCHMARK": False,  # let cuDNN time its algorithms; off in evaluation
    "FLOAT32_PRECISION": "",  # torch.set_float32_matmul_precision: "" (leave), "highest", "high", "medium"
    "OUTPUT_DIR": "./output",  # logs, checkpoints, metrics and predictions go here
    "SEED": -1,  # negative: a random one; otherwise rank is added
    "VERSION": 2,  # schema version; files without it are taken for the newest that fits
    "VIS_PERIOD": 0,  # iterations between training pictures in the event storage; 0 = never
    "DATALOADER": {
        "ASPECT_RATIO_GROUPING": True,  # wide with wide, tall with tall: less padding
        "FILTER_EMPTY_ANNOTATIONS": True,  # train only on images that have instances
        "NUM_WORKERS": 4,  # processes per rank
        "REPEAT_SQRT": True,  # square root of threshold / frequency, else the ratio itself
        "REPEAT_THRESHOLD": 0.0,  # fraction of images below which a class is repeated
        # "TrainingSampler", "RepeatFactorTrainingSampler" or "RandomSubsetTrainingSampler"
        "SAMPLER_TRAIN": "TrainingSampler",
    },
    "DATASETS": {
        "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
        "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
        "PROPOSAL_FILES_TEST": (),
        "PROPOSAL_FILES_TRAIN": (),  # one per data set, with MODEL.LOAD_PROPOSALS
        "TEST": (),
        "TRAIN": (),  # registered names
    },
    "GLOBAL": {
        "HACK": 1.0,  # free for quick experiments
    },
    "INPUT": {
        "FORMAT": "BGR",  # channel order of the images read: "BGR", "RGB", "L", "YUV-BT.601"
        "MASK_FORMAT": "polygon",  # "polygon" or "bitmask"
        "MAX_SIZE_TEST": 1333,
        "MAX_SIZE_TRAIN": 1333,  # limit of the longer side
        "MIN_SIZE_TEST": 800,  # 0 = do not resize
        "MIN_SIZE_TRAIN": (800,),  # shorter side in pixels: candidates, or the two ends of "range"
        "MIN_SIZE_TRAIN_SAMPLING": "choice",  # "choice" or "range"
        "RANDOM_FLIP": "horizontal",  # "horizontal", "vertical" or "none"
        "CROP": {
            "ENABLED": False,
            "SIZE": [0.9, 0.9],  # (height, width), relative or in pixels
            "TYPE": "relative_range",  # "relative_range", "relative", "absolute", "absolute_range"
        },
    },
    "MODEL": {
        "DEVICE": "cuda",
        "KEYPOINT_ON": False,
        "LOAD_PROPOSALS": False,  # read proposals from DATASETS.PROPOSAL_FILES_* instead of predicting them
        "MASK_ON": False,
        "META_ARCHITECTURE": "GeneralizedRCNN",
        # per channel, in the order of INPUT.FORMAT; their number is the number of input channels
        "PIXEL_MEAN": [103.53, 116.28, 123.675],
        "PIXEL_STD": [1.0, 1.0, 1.0],  # 1 for backbones that were trained on unscaled BGR
        "WEIGHTS": "",  # path or URL of a checkpoint; "" = none
        "ANCHOR_GENERATOR": {
            "ANGLES": [[-90, 0, 90]],  # degrees, of rotated anchors
            "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],  # height / width, likewise
            "NAME": "DefaultAnchorGenerator",
            "OFFSET": 0.0,  # of the anchors' centres, in strides: [0, 1)
            # side of the square anchor in pixels: one list per feature map, or one for all
            "SIZES": [[32, 64, 128, 256, 512]],
        },
        "BACKBONE": {
            "FREEZE_AT": 2,  # 0 = nothing, 1 = stem, 2 = stem and res2, ...
            "NAME": "build_resnet_backbone",
        },
        "FPN": {
            "FUSE_TYPE": "sum",  # "sum" or "avg"
            "IN_FEATURES": [],
            "NORM": "",  # "", "BN", "SyncBN", "FrozenBN", "GN", "LN"
            "OUT_CHANNELS": 256,
        },
        "PANOPTIC_FPN": {
            "INSTANCE_LOSS_WEIGHT": 1.0,  # the semantic loss has its own weight
            "COMBINE": {
                "ENABLED": True,
                "INSTANCES_CONFIDENCE_THRESH": 0.5,
                "OVERLAP_THRESH": 0.5,
                "STUFF_AREA_LIMIT": 4096,
            },
        },
        "PROPOSAL_GENERATOR": {
            "MIN_SIZE": 0,  # pixels of the network input; smaller proposals go
            "NAME": "RPN",  # "RPN", "PrecomputedProposals" or a registered name
        },
        "RESNETS": {
            "DEFORM_MODULATED": False,  # deformable convolution v2 instead of v1
            "DEFORM_NUM_GROUPS": 1,
            "DEFORM_ON_PER_STAGE": [False, False, False, False],  # res2 to res5
            "DEPTH": 50,  # 18, 34, 50, 101 or 152
            "NORM": "FrozenBN",
            "NUM_GROUPS": 1,  # 1 = ResNet, more = ResNeXt
            "OUT_FEATURES": ["res4"],
            "RES2_OUT_CHANNELS": 256,
            "RES5_DILATION": 1,
            "STEM_OUT_CHANNELS": 64,  # 64 at depth 18 and 34 goes with RES2_OUT_CHANNELS 64
            "STRIDE_IN_1X1": True,  # True for the MSRA weights, False for torchvision's
            "WIDTH_PER_GROUP": 64,  # channels of a group in res2
        },
        "RETINANET": {
            "BBOX_REG_LOSS_TYPE": "smooth_l1",
            "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
            "FOCAL_LOSS_ALPHA": 0.25,
            "FOCAL_LOSS_GAMMA": 2.0,
            "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "IOU_LABELS": [0, -1, 1],
            "IOU_THRESHOLDS": [0.4, 0.5],
            "NMS_THRESH_TEST": 0.5,
            "NORM": "",
            "NUM_CLASSES": 80,  # foreground classes
            "NUM_CONVS": 4,
            "PRIOR_PROB": 0.01,
            "SCORE_THRESH_TEST": 0.05,
            "SMOOTH_L1_LOSS_BETA": 0.1,
            "TOPK_CANDIDATES_TEST": 1000,
        },
        "ROI_BOX_CASCADE_HEAD": {
            "BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
            "IOUS": (0.5, 0.6, 0.7),  # foreground threshold of each stage
        },
        "ROI_BOX_HEAD": {
            "BBOX_REG_LOSS_TYPE": "smooth_l1",
            "BBOX_REG_LOSS_WEIGHT": 1.0,
            "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
            "CLS_AGNOSTIC_BBOX_REG": False,  # one box per region instead of one per class
            "CONV_DIM": 256,
            "FC_DIM": 1024,
            "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,  # classes are drawn with image count to this power
            "FED_LOSS_NUM_CLASSES": 50,
            "NAME": "",
            "NORM": "",
            "NUM_CONV": 0,
            "NUM_FC": 0,
            "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0,  # samples per bin side; 0 = adaptive
            "POOLER_TYPE": "ROIAlignV2",  # "ROIAlignV2" (pixel centres at .5), "ROIAlign", "ROIPool"
            "SMOOTH_L1_BETA": 0.0,
            "TRAIN_ON_PRED_BOXES": False,  # train later heads on the boxes predicted here
            "USE_FED_LOSS": False,  # sigmoid loss on sampled classes only
            "USE_SIGMOID_CE": False,  # independent classes instead of a softmax
        },
        "ROI_HEADS": {
            "BATCH_SIZE_PER_IMAGE": 512,  # regions sampled for the loss
            "IN_FEATURES": ["res4"],
            "IOU_LABELS": [0, 1],
            "IOU_THRESHOLDS": [0.5],
            "NAME": "Res5ROIHeads",
            "NMS_THRESH_TEST": 0.5,
            "NUM_CLASSES": 80,  # foreground classes
            "POSITIVE_FRACTION": 0.25,  # of these, at most
            "PROPOSAL_APPEND_GT": True,  # ground-truth boxes join the proposals in training
            "SCORE_THRESH_TEST": 0.05,  # detections below go
        },
        "ROI_KEYPOINT_HEAD": {
            "CONV_DIMS": (512, 512, 512, 512, 512, 512, 512, 512),
            "LOSS_WEIGHT": 1.0,
            "MIN_KEYPOINTS_PER_IMAGE": 1,
            "NAME": "KRCNNConvDeconvUpsampleHead",
            "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True,
            "NUM_KEYPOINTS": 17,
            "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
        },
        "ROI_MASK_HEAD": {
            "CLS_AGNOSTIC_MASK": False,
            "CONV_DIM": 256,
            "NAME": "MaskRCNNConvUpsampleHead",
            "NORM": "",  # as MODEL.FPN.NORM
            "NUM_CONV": 0,
            "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
        },
        "RPN": {
            "BATCH_SIZE_PER_IMAGE": 256,  # anchors sampled for the loss
            "BBOX_REG_LOSS_TYPE": "smooth_l1",  # "smooth_l1", "giou", "diou" or "ciou"
            "BBOX_REG_LOSS_WEIGHT": 1.0,
            "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),  # factors on (dx, dy, dw, dh)
            "BOUNDARY_THRESH": -1,  # pixels an anchor may leave the image by in training; -1 = any
            "CONV_DIMS": [-1],  # -1 = as the input
            "HEAD_NAME": "StandardRPNHead",
            "IN_FEATURES": ["res4"],
            "IOU_LABELS": [0, -1, 1],  # labels of these three ranges
            "IOU_THRESHOLDS": [0.3, 0.7],  # below the first: background; between: ignored; above: object
            "LOSS_WEIGHT": 1.0,
            "NMS_THRESH": 0.7,
            "POSITIVE_FRACTION": 0.5,
            "POST_NMS_TOPK_TEST": 1000,
            "POST_NMS_TOPK_TRAIN": 2000,  # per image
            "PRE_NMS_TOPK_TEST": 6000,
            "PRE_NMS_TOPK_TRAIN": 12000,  # per feature map
            "SMOOTH_L1_BETA": 0.0,  # where the loss turns from L2 to L1; 0 = pure L1
        },
        "SEM_SEG_HEAD": {
            "COMMON_STRIDE": 4,  # of the map on which the features are summed
            "CONVS_DIM": 128,
            "IGNORE_VALUE": 255,  # label of pixels without loss
            "IN_FEATURES": ["p2", "p3", "p4", "p5"],
            "LOSS_WEIGHT": 1.0,
            "NAME": "SemSegFPNHead",
            "NORM": "GN",
            "NUM_CLASSES": 54,  # stuff classes and one for all things, where these share a map
        },
    },
    "SOLVER": {
        "BASE_LR": 0.001,
        "BASE_LR_END": 0.0,  # final rate of the cosine schedule
        "BIAS_LR_FACTOR": 1.0,  # on the rate of biases
        "CHECKPOINT_PERIOD": 5000,  # iterations
        "GAMMA": 0.1,
        "IMS_PER_BATCH": 16,  # over all ranks
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "MAX_ITER": 40000,
        "MOMENTUM": 0.9,
        "NESTEROV": False,
        "NUM_DECAYS": 3,  # of WarmupStepWithFixedGammaLR
        "REFERENCE_WORLD_SIZE": 0,  # ranks that the schedule was made for; 0 = do not scale it
        "RESCALE_INTERVAL": False,  # squeeze the schedule between warmup and the end
        "STEPS": (30000,),  # iterations at which the rate is multiplied by GAMMA
        "WARMUP_FACTOR": 0.001,  # the rate starts at this fraction
        "WARMUP_ITERS": 1000,
        "WARMUP_METHOD": "linear",  # "linear" or "constant"
        "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_BIAS": None,  # None = WEIGHT_DECAY
        "WEIGHT_DECAY_NORM": 0.0,  # of normalisation layers
        "AMP": {
            "ENABLED": False,  # mixed precision
        },
        "CLIP_GRADIENTS": {
            "CLIP_TYPE": "value",  # "value" or "norm", each parameter tensor by itself
            "CLIP_VALUE": 1.0,
            "ENABLED": False,
            "NORM_TYPE": 2.0,
        },
    },
    "TEST": {
        "DETECTIONS_PER_IMAGE": 100,  # over all classes
        "EVAL_PERIOD": 0,  # iterations; 0 = only after training
        "EXPECTED_RESULTS": [],  # [[task, metric, value, tolerance], ...]: checked after the last evaluation
        "KEYPOINT_OKS_SIGMAS": [],  # [] = COCO's
        "AUG": {
            "ENABLED": False,
            "FLIP": True,
            "MAX_SIZE": 4000,
            "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),  # shorter sides of the copies of an image
        },
        "PRECISE_BN": {
            "ENABLED": False,
            "NUM_ITER": 200,  # batches for the statistics
        },
    },
}

_C = CfgNode(_DEFAULTS)
