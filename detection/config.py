"""Config keys of the open-vocabulary detector: the published ones of Detic and POMP, and this project's own.

Published keys keep their names, types and defaults, so published YAML files merge. Keys that only this project knows
are all in `_add_own_keys`, and `MODEL.CLASS_EMBEDDINGS` in `prompt_pretrain.class_embeddings`.
"""

from detectron2.config import CfgNode
from prompt_pretrain.class_embeddings import add_class_embeddings_config

__all__ = ["add_detic_config"]


def add_detic_config(cfg: CfgNode) -> None:
    """Add the keys in place. Call after ``add_centernet_config``: both set ``CAT_FREQ_PATH`` and some of ``INPUT``."""
    _add_top_level_keys(cfg)
    _add_box_head_keys(cfg)
    _add_model_keys(cfg)
    _add_backbone_keys(cfg)
    _add_detr_keys(cfg)
    _add_data_keys(cfg)
    _add_solver_keys(cfg)
    _add_pomp_keys(cfg)
    add_class_embeddings_config(cfg)
    _add_own_keys(cfg)


def _add_top_level_keys(cfg: CfgNode) -> None:
    cfg.WITH_IMAGE_LABELS = False  # co-training with image labels: another data mapper, and `image_loss` entries
    cfg.FP16 = False  # half-precision backbone and a gradient scaler in training; float32 where a device lacks it
    cfg.FIND_UNUSED_PARAM = True  # of DistributedDataParallel
    cfg.GEN_PSEDO_LABELS = False  # use the LVIS evaluator for any data set
    cfg.IS_DEBUG = False  # the mapper takes every record for one of the first data set, image labels from its boxes
    cfg.SAVE_DEBUG_PATH = "output/save_debug/"  # drawings
    # Published keys without a function.
    cfg.EVAL_PRED_AR = False
    cfg.EVAL_PROPOSAL_AR = False
    cfg.EVAL_CAT_SPEC_AR = False
    cfg.EVAL_AP_FIX = False
    cfg.QUICK_DEBUG = False


def _add_box_head_keys(cfg: CfgNode) -> None:
    head = cfg.MODEL.ROI_BOX_HEAD
    # Classifier
    head.USE_ZEROSHOT_CLS = False  # compare regions with frozen class embeddings; otherwise a learned linear layer
    head.ZEROSHOT_WEIGHT_PATH = "datasets/metadata/lvis_v1_clip_a+cname.npy"  # (C, D) file, or the word "rand"
    head.ZEROSHOT_WEIGHT_DIM = 512  # D
    head.NORM_WEIGHT = True  # cosine classifier: regions and embeddings are normalised
    head.NORM_TEMP = 50.0  # factor on the cosine similarity, i.e. 1 / temperature
    head.USE_BIAS = 0.0  # < 0: one learned bias for all classes that starts there; >= 0: none
    # Supervised loss
    head.MULT_PROPOSAL_SCORE = False  # final score: sqrt(class score * proposal score)
    head.USE_SIGMOID_CE = False  # classes independent (sigmoid), otherwise exclusive (softmax)
    head.PRIOR_PROB = 0.01  # of a class at the start, for a learned classifier with sigmoid
    head.IGNORE_ZERO_CATS = False  # no loss for categories without training images
    head.USE_FED_LOSS = False  # of the categories absent from a batch only some, drawn by frequency, enter the loss
    head.FED_LOSS_NUM_CAT = 50  # how many categories enter, those of the batch among them
    head.FED_LOSS_FREQ_WEIGHT = 0.5  # drawn by image count to this power
    head.CAT_FREQ_PATH = "datasets/metadata/lvis_v1_train_cat_info.json"  # [{"id": ..., "image_count": ...}, ...]
    # Image-level loss
    head.IMAGE_LABEL_LOSS = (
        "max_size"  # max_size, max_score, first, image, min_loss, wsod or wsddn: which regions learn
    )
    head.IMAGE_LOSS_WEIGHT = 0.1  # of label and caption loss
    head.IMAGE_BOX_SIZE = 1.0  # side of the centred image box, in sides of the image
    head.ADD_IMAGE_BOX = False  # append that box to the proposals of image-labelled images
    head.WS_NUM_PROPS = 128  # proposals of each image-labelled image
    head.WITH_SOFTMAX_PROP = False  # a branch that scores proposals against each other, for wsddn
    head.CAPTION_WEIGHT = 1.0  # of the caption loss
    head.NEG_CAP_WEIGHT = 0.125  # of other images' captions, only with SYNC_CAPTION_BATCH
    head.ADD_FEATURE_TO_PROP = False  # store box features on the proposals
    head.SOFTMAX_WEAK_LOSS = False  # cross entropy instead of binary ones; needs IMAGE_LABEL_LOSS max_size


def _add_model_keys(cfg: CfgNode) -> None:
    model = cfg.MODEL
    model.ROI_HEADS.MASK_WEIGHT = 1.0  # of the mask loss
    model.ROI_HEADS.ONE_CLASS_PER_PROPOSAL = False  # of each region only the best class can be detected
    model.WITH_CAPTION = False  # learn from captions: needs a text tower
    model.SYNC_CAPTION_BATCH = False  # captions of all processes are negatives of each image
    model.CAP_BATCH_RATIO = 4  # images of a caption batch per image of a box batch
    model.DYNAMIC_CLASSIFIER = False  # each training step sees a sample of the classes only
    model.NUM_SAMPLE_CATS = 50  # size of that sample
    model.RESET_CLS_TESTS = False  # a classifier of its own for each test set
    model.TEST_CLASSIFIERS = []  # their files, one per test set
    model.TEST_NUM_CLASSES = []  # their numbers of classes
    model.DATASET_LOSS_WEIGHT = []  # factor on all losses, one per training set; [] for none


def _add_backbone_keys(cfg: CfgNode) -> None:
    cfg.MODEL.SWIN = CfgNode()
    cfg.MODEL.SWIN.SIZE = "T"  # T, S, B, B-22k, B-22k-384, L-22k or L-22k-384
    cfg.MODEL.SWIN.USE_CHECKPOINT = False  # recompute activations in the backward pass: slower, less memory
    cfg.MODEL.SWIN.OUT_FEATURES = (1, 2, 3)  # stages to return, counted from 0

    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.BASE_NAME = "resnet50"  # timm's name, resnet50_in21k or convnext_tiny_21k
    cfg.MODEL.TIMM.OUT_LEVELS = (3, 4, 5)  # feature maps to return, counted from 1
    cfg.MODEL.TIMM.NORM = "FrozenBN"  # FrozenBN freezes every batch norm
    cfg.MODEL.TIMM.FREEZE_AT = 0  # >= 1 freezes conv1 of a ResNet, >= 2 layer1 too
    cfg.MODEL.TIMM.PRETRAINED = False  # fetch timm's weights


def _add_detr_keys(cfg: CfgNode) -> None:
    cfg.MODEL.DETR = CfgNode()
    detr = cfg.MODEL.DETR
    detr.NUM_CLASSES = 80
    detr.FROZEN_WEIGHTS = ""  # published key without a function
    detr.GIOU_WEIGHT = 2.0
    detr.L1_WEIGHT = 5.0
    detr.DEEP_SUPERVISION = True  # a loss on every decoder layer
    detr.NO_OBJECT_WEIGHT = 0.1
    detr.CLS_WEIGHT = 2.0
    detr.NUM_FEATURE_LEVELS = 4
    detr.TWO_STAGE = False  # queries from the encoder's best proposals
    detr.WITH_BOX_REFINE = False  # each decoder layer refines the boxes of the one before
    detr.FOCAL_ALPHA = 0.25
    detr.NHEADS = 8
    detr.DROPOUT = 0.1
    detr.DIM_FEEDFORWARD = 2048
    detr.ENC_LAYERS = 6
    detr.DEC_LAYERS = 6
    detr.PRE_NORM = False
    detr.HIDDEN_DIM = 256
    detr.NUM_OBJECT_QUERIES = 100
    detr.USE_FED_LOSS = False
    detr.WEAK_WEIGHT = 0.1  # of the image-level loss


def _add_data_keys(cfg: CfgNode) -> None:
    loader = cfg.DATALOADER
    # One entry per training set; released configs have two.
    loader.DATASET_RATIO = [1, 1]  # how often each is drawn from, relatively
    loader.USE_RFS = [False, False]  # repeat-factor sampling
    loader.DATASET_ANN = ["box", "box"]  # kind of annotation: box, image, caption, captiontag, prop or proptag
    loader.MULTI_DATASET_GROUPING = False  # batches of one data set only; needed where kinds of annotation differ
    loader.USE_DIFF_BS_SIZE = False  # batch and image sizes per data set, from the keys below
    loader.DATASET_BS = [8, 32]  # batch size per process
    loader.DATASET_INPUT_SIZE = [896, 384]  # EfficientDetResizeCrop: target size in pixels ...
    loader.DATASET_INPUT_SCALE = [(0.1, 2.0), (0.5, 1.5)]  # ... and range of scales
    loader.DATASET_MIN_SIZES = [(640, 800), (320, 400)]  # ResizeShortestEdge: range of the shorter side ...
    loader.DATASET_MAX_SIZES = [1333, 667]  # ... and limit of the longer one
    loader.USE_TAR_DATASET = False  # ImageNet-21K from tar files
    loader.TARFILE_PATH = "datasets/imagenet/metadata-22k/tar_files.npy"
    loader.TAR_INDEX_DIR = "datasets/imagenet/metadata-22k/tarindex_npy"

    cfg.INPUT.CUSTOM_AUG = ""  # "", ResizeShortestEdge, EfficientDetResizeCrop or DETR
    cfg.INPUT.TRAIN_SIZE = 640
    cfg.INPUT.TEST_SIZE = 640
    cfg.INPUT.SCALE_RANGE = (0.1, 2.0)
    cfg.INPUT.TEST_INPUT_TYPE = "default"  # anything else: the custom augmentation at test time too


def _add_solver_keys(cfg: CfgNode) -> None:
    cfg.SOLVER.USE_CUSTOM_SOLVER = False  # the optimiser of the keys below instead of detectron2's
    cfg.SOLVER.OPTIMIZER = "SGD"  # or ADAMW
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0  # factor on the backbone's learning rate
    cfg.SOLVER.CUSTOM_MULTIPLIER = 1.0  # factor on that of parameters whose name holds one of CUSTOM_MULTIPLIER_NAME
    cfg.SOLVER.CUSTOM_MULTIPLIER_NAME = []


def _add_pomp_keys(cfg: CfgNode) -> None:
    cfg.MODEL.RESET_CLS_TRAIN = False  # train with another classifier than ZEROSHOT_WEIGHT_PATH
    cfg.MODEL.TRAIN_CLASSIFIERS = ""  # its file
    cfg.MODEL.TRAIN_NUM_CLASSES = 1203  # its number of classes


def _add_own_keys(cfg: CfgNode) -> None:
    # Batches in which each process works off its share of IMS_PER_BATCH, one after the other: as so many processes
    # would, with the memory of one batch (docs/DEVIATIONS.md says what is equal).
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # The CLIP whose text tower encodes captions: a published name, open_clip NAME/TAG or a weight file.
    cfg.MODEL.CAPTION_CLIP = "ViT-B/32"
    # Format in which backbone, box heads and mask head compute at inference: "fp32", "bf16" or "fp16".
    cfg.MODEL.INFERENCE_PRECISION = "fp32"
    head = cfg.MODEL.ROI_BOX_HEAD
    # Classes scored at a time in inference: bounds the memory of huge vocabularies, changes no result. 0: 1024 on a
    # CPU, whose caches they should fit, and 16384 elsewhere.
    head.CLASSES_PER_CHUNK = 0
    # Published oddities of the image-level loss; False is what one would expect (docs/DEVIATIONS.md).
    head.IMAGE_LOSS_DROP_LAST = True  # max_size never selects the last proposal, even where it is no image box
    head.IMAGE_LOSS_BACKGROUND = True  # the background column enters the loss: a constant ln 2 where it has no bias
    head.IMAGE_LOSS_MUTUAL_NEGATIVES = True  # labels of one image are negatives of each other
