"""Config keys of segmentation: the published ones of DeepLab, MaskFormer and ZSSeg, and this project's own."""

from detectron2.config import CfgNode
from detectron2.projects.deeplab import add_deeplab_config
from mask_former import add_mask_former_config
from prompt_pretrain.class_embeddings import add_class_embeddings_config

__all__ = ["add_config"]


def add_config(cfg: CfgNode) -> None:
    """Add every key of segmentation in place, in the order that the hooks need."""
    add_deeplab_config(cfg)
    add_mask_former_config(cfg)
    add_class_embeddings_config(cfg)
    # Batches in which each process works off its share of IMS_PER_BATCH, one after the other: as so many processes
    # would, with the memory of one batch (docs/DEVIATIONS.md says what is equal).
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Side in pixels to which crops are resized with REGION_RESIZED; 0: the size that CLIP was trained with.
    cfg.MODEL.CLIP_ADAPTER.REGION_SIZE = 224
    # Matrix products that encode crops: "fp32", or "bf16", which is about twice as fast and changes a few labels.
    cfg.MODEL.CLIP_ADAPTER.REGION_PRECISION = "fp32"
    # Logits / cosine similarity, of queries, crops and stage 1; 0.0: the CLIP's own, for CLIPs far from 100.
    cfg.MODEL.CLIP_ADAPTER.LOGIT_SCALE = 100.0
    # Classifier of masks: "crops", one pass of CLIP per mask, or "pooling", one per image: faster, other scores.
    cfg.MODEL.CLIP_ADAPTER.REGION_CLASSIFIER = "crops"
    # Folder with the regions of each image as <image stem>.npy, for ZeroShotProposalBasedSegmentor.
    cfg.MODEL.CLIP_ADAPTER.PROPOSALS = ""
    # Label maps instead of maps of scores at test time: the same labels, in memory that does not grow with the classes,
    # from fewer crops. Not for test-time augmentation, dense CRFs and pseudo labels, which need scores.
    cfg.MODEL.CLIP_ADAPTER.LABELS_ONLY = False
    # With LABELS_ONLY, the share of pixels whose labels may differ, at most, for fewer crops; 0: none.
    cfg.MODEL.CLIP_ADAPTER.LABELS_IN_DOUBT = 0.0
