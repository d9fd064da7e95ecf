"""Config keys of MaskFormer and ZSSeg, which adds its own in the same function, with the published names and types."""

from detectron2.config import CfgNode

__all__ = ["add_mask_former_config"]

_SCULPTURE = ["a sculpture of a {}."]


def add_mask_former_config(cfg: CfgNode) -> None:
    """Add the keys in place. Call it after ``add_deeplab_config`` and before any merge."""
    _add_data_and_solver(cfg)
    _add_mask_former(cfg)
    _add_swin(cfg)
    _add_zero_shot(cfg)
    _add_evaluation(cfg)


def _add_data_and_solver(cfg: CfgNode) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"  # or "mask_former_binary_semantic"; others: detectron2's own
    cfg.INPUT.COLOR_AUG_SSD = False  # colour jitter of SSD
    cfg.INPUT.SIZE_DIVISIBILITY = -1  # > 0: the side in pixels to which images are padded (a size, not a divisor)
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0  # largest share of a crop that one class may take; 1 = any
    cfg.DATASETS.SAMPLE_PER_CLASS = -1  # mask classification: masks drawn per class; -1 = all
    cfg.DATASETS.SAMPLE_SEED = 0
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # or "SGD"
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # of nn.Embedding
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate of the backbone / BASE_LR
    cfg.SOLVER.TEST_IMS_PER_BATCH = 1  # images per process and step at test time


def _add_mask_former(cfg: CfgNode) -> None:
    cfg.MODEL.MASK_FORMER = CfgNode(
        {
            # --- losses
            "DEEP_SUPERVISION": True,  # a loss on the output of every decoder layer
            "NO_OBJECT_WEIGHT": 0.1,  # of queries without a mask in the class loss; 0 leaves them out
            "DICE_WEIGHT": 1.0,  # in matching and loss
            "MASK_WEIGHT": 20.0,  # of the focal loss, in matching and loss
            # --- transformer
            "NHEADS": 8,
            "DROPOUT": 0.1,
            "DIM_FEEDFORWARD": 2048,
            "ENC_LAYERS": 0,
            "DEC_LAYERS": 6,
            "PRE_NORM": False,  # LayerNorm before attention instead of after it
            "HIDDEN_DIM": 256,
            "NUM_OBJECT_QUERIES": 100,
            "TRANSFORMER_IN_FEATURE": "res5",  # or "transformer_encoder": the pixel decoder's encoder output
            "ENFORCE_INPUT_PROJ": False,  # project the input of the transformer even where its width fits
            # --- inference
            "SIZE_DIVISIBILITY": 32,  # of padded batches; negative: the backbone's own
            "TEST": {
                "PANOPTIC_ON": False,
                "OBJECT_MASK_THRESHOLD": 0.0,  # panoptic: smallest class score of a segment
                "OVERLAP_THRESHOLD": 0.0,  # panoptic: smallest visible share of a segment
                "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,  # resize masks, not the map that they add up to
            },
        }
    )
    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256  # width of mask embeddings
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"  # or "TransformerEncoderPixelDecoder"
    head.TRANSFORMER_ENC_LAYERS = 0  # of TransformerEncoderPixelDecoder


def _add_swin(cfg: CfgNode) -> None:
    cfg.MODEL.SWIN = CfgNode(
        {
            "PRETRAIN_IMG_SIZE": 224,  # pixels; size of the absolute position embedding
            "PATCH_SIZE": 4,
            "EMBED_DIM": 96,
            "DEPTHS": [2, 2, 6, 2],
            "NUM_HEADS": [3, 6, 12, 24],
            "WINDOW_SIZE": 7,
            "MLP_RATIO": 4.0,
            "QKV_BIAS": True,
            "QK_SCALE": None,  # None: 1 / sqrt(width of a head)
            "DROP_RATE": 0.0,
            "ATTN_DROP_RATE": 0.0,
            "DROP_PATH_RATE": 0.3,  # of the last block; grows linearly from 0
            "APE": False,  # absolute position embedding
            "PATCH_NORM": True,
            "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        }
    )


def _add_zero_shot(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    head.EMBEDDING_DIM = 512  # of CLIP's joint space
    head.EMBED_HIDDEN_DIM = 1024  # of the MLP from queries to that space
    head.EMBED_LAYERS = 2
    text = {
        "CLIP_MODEL_NAME": "ViT-B/16",  # OpenAI name, or a checkpoint
        "PREDEFINED_PROMPT_TEMPLATES": list(_SCULPTURE),  # of "predefined"
        "PROMPT_DIM": 512,  # width of the text transformer
        "PROMPT_SHAPE": (16, 0),  # context vectors before and after the class name
        "PROMPT_CHECKPOINT": "",  # of "learnable", "pomp", "pomp_tuned"
    }
    cfg.MODEL.CLIP_ADAPTER = CfgNode(
        {
            **text,
            "PROMPT_LEARNER": "imagenet",  # "predefined", "imagenet", "vild", "learnable", "pomp" or "pomp_tuned"
            # --- crops of masks
            "MASK_FILL": "mean",  # of pixels outside of the mask: CLIP's mean, or "zero"
            "MASK_EXPAND_RATIO": 1.0,  # side of a crop / side of the mask's box
            "MASK_THR": 0.5,  # probability above which a pixel belongs to a mask
            "MASK_MATTING": False,  # weigh pixels by the probability instead
            "REGION_RESIZED": True,  # to CLIP's 224 x 224; otherwise each crop is encoded at its own size
            # --- ensemble with the query classifier
            "CLIP_ENSEMBLE": True,
            "CLIP_ENSEMBLE_WEIGHT": 0.8,  # of the query classifier for seen classes, of CLIP for unseen ones
            "SEPERATE_ADAPTER": False,  # crops have a CLIP and prompt of their own (spelt as published):
            "REGION_CLIP_ADAPTER": {**text, "PROMPT_LEARNER": "predefined"},
        }
    )


def _add_evaluation(cfg: CfgNode) -> None:
    cfg.ORACLE = False  # the test loader reads labels too
    cfg.PSEUDO = False  # evaluate and write pseudo labels
    cfg.PSEUDO_WITH_PRIOR = True  # pseudo labels are of unseen classes only
    cfg.PSEUDO_REJECT_THRESHOLD = 0.0  # smallest score of a pseudo label
    cfg.PSEUDO_FLAG_NAME = "trainable_flag"  # unused, published
    cfg.TEST.SLIDING_WINDOW = False
    cfg.TEST.SLIDING_TILE_SIZE = 224  # pixels; not positive: chosen by the size of the image
    cfg.TEST.SLIDING_OVERLAP = 2 / 3  # of neighbouring tiles
    cfg.TEST.DENSE_CRF = False  # needs pydensecrf
    cfg.WANDB = CfgNode({"PROJECT": "zero_shot_seg", "NAME": None})
