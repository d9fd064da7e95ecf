"""Whether model and data sets agree about the classes; asked before the model is built."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from prompt_pretrain.errors import InputError

__all__ = ["check_class_counts", "classes_of", "seen_flags_of"]

_CLOSED = ("MaskFormer", "OracleMaskFormer", "SemanticSegmentor")  # score NUM_CLASSES classes, whatever the data


def classes_of(data_set: str) -> tuple[str, ...]:
    """Class names of a registered data set.

    Raises:
        InputError: it has none.
    """
    names = MetadataCatalog.get(data_set).get("stuff_classes")
    if not names:
        raise InputError(f"data set {data_set} has no class names; set stuff_classes in its metadata")
    return tuple(names)


def seen_flags_of(data_set: str) -> list[int]:
    """1 for each seen class, 0 for each unseen one; all 0 where the data set does not tell, as published."""
    flags = MetadataCatalog.get(data_set).get("trainable_flag")
    return list(flags) if flags else [0] * len(classes_of(data_set))


def check_class_counts(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Fail unless the head has the classes of the data sets, where it must.

    A head that compares with text takes any classes at test time, but its losses count those of the training set.

    Raises:
        InputError: with both numbers and what to change, or a training set without a seen class.
    """
    architecture, head = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    names = () if eval_only else cfg.DATASETS.TRAIN
    for name in names:
        flags = MetadataCatalog.get(name).get("trainable_flag")
        if flags and not any(flags):
            raise InputError(
                f"data set {name} of DATASETS.TRAIN has no seen class (its trainable_flag is 0 throughout), so nothing "
                "can be learned from it; take a set with seen classes"
            )
    if architecture in _CLOSED:
        names = (*names, *cfg.DATASETS.TEST)
    elif architecture != "ZeroShotMaskFormer":
        return
    for name in names:
        count = len(classes_of(name))
        if count != head:
            raise InputError(
                f"data set {name} has {count} classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head}; set it to {count}"
                + (" and train again" if eval_only else "")
            )
