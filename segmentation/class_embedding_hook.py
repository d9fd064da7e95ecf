"""``MODEL.CLASS_EMBEDDINGS`` in a segmentation config: prompt, vocabulary or ready embeddings for any published config.

A prompt is translated to the published keys, so that the model encodes any further class names with it and the written
config can be used as it is. Ready embeddings are given to the model once its weights are loaded.
"""

import logging
from collections.abc import Iterator

from torch import nn

from detectron2.config import CfgNode
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.clip import load_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import load_vocabulary
from segmentation.class_counts import classes_of, seen_flags_of
from segmentation.clip_adapter import ClipAdapter

__all__ = ["WITH_TEXT", "apply_class_embeddings", "resolve_class_embeddings_of", "trained_classes", "use_vocabulary"]
_log = logging.getLogger(__name__)

# Meta architectures whose classifier compares with texts.
WITH_TEXT = ("ZeroShotMaskFormer", "ZeroShotPerPixelModel", "ProposalClipClassifier")


def resolve_class_embeddings_of(cfg: CfgNode) -> None:
    """Set the published keys of ``cfg`` in place to what ``MODEL.CLASS_EMBEDDINGS`` asks for.

    PROMPT: ``CLIP_ADAPTER.{PROMPT_LEARNER, PROMPT_CHECKPOINT, PROMPT_SHAPE, PROMPT_DIM, CLIP_MODEL_NAME}`` and
    ``SEM_SEG_HEAD.EMBEDDING_DIM`` follow, for queries and crops alike. VOCABULARY: other names for the classes of the
    data sets that have as many. ``SEM_SEG_HEAD.NUM_CLASSES`` follows the training set.

    Raises:
        InputError: a model without text, a prompt that this model cannot use, or a vocabulary of no data set's size.
    """
    node, model = cfg.MODEL.CLASS_EMBEDDINGS, cfg.MODEL
    if not (node.PROMPT or node.PATH or node.VOCABULARY):
        return
    if model.META_ARCHITECTURE not in WITH_TEXT:
        raise InputError(
            f"MODEL.CLASS_EMBEDDINGS is set, but the classifier of {model.META_ARCHITECTURE} is a learned one; take a "
            f"config with one of {', '.join(WITH_TEXT)}"
        )
    if node.PATH:
        ClassEmbeddings.load(node.PATH)  # fails now rather than when the model has been built
        model.CLIP_ADAPTER.PROMPT_LEARNER = "predefined"  # nothing to train
        model.CLIP_ADAPTER.SEPERATE_ADAPTER = False
    elif node.PROMPT:
        _use_prompt(cfg)
    if node.VOCABULARY:
        _check_vocabulary(cfg)
    if model.META_ARCHITECTURE == "ZeroShotMaskFormer" and cfg.DATASETS.TRAIN:
        model.SEM_SEG_HEAD.NUM_CLASSES = len(classes_of(cfg.DATASETS.TRAIN[0]))


def apply_class_embeddings(cfg: CfgNode, model: nn.Module) -> None:
    """Give ``model`` the embeddings of ``MODEL.CLASS_EMBEDDINGS.PATH`` and the names of its training set.

    To be called when weights have been loaded, which makes a model forget given embeddings.

    Raises:
        InputError: embeddings of another CLIP or width, or none for a class of a data set.
    """
    path = cfg.MODEL.CLASS_EMBEDDINGS.PATH
    if path:
        found = ClassEmbeddings.load(path)
        names = found.class_names or _names_for(cfg, len(found))
        for data_set in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            known = {name.strip() for name in names}
            missing = [name for name in _class_names(cfg, data_set) if name.strip() not in known]
            if missing:
                raise InputError(
                    f"{path} has no embedding of {missing[0]!r}, one of {len(missing)} classes of {data_set} that it "
                    "lacks; export one of all classes with tools/export_class_embeddings.py, or set "
                    "MODEL.CLASS_EMBEDDINGS.VOCABULARY to the names as the file spells them"
                )
        for adapter in _adapters(model):
            found.check(clip=adapter.clip)
            adapter.set_text_features(names, found.embeddings.to(adapter.clip.device))
        _log.info("class embeddings: %d from %s", len(found), path)
    use_vocabulary(cfg, model, cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else None)


def use_vocabulary(cfg: CfgNode, model: nn.Module, data_set: str | None) -> None:
    """Let ``model`` call the classes of a data set as ``MODEL.CLASS_EMBEDDINGS.VOCABULARY`` does, if it has as many."""
    inner = getattr(model, "module", model)
    if not cfg.MODEL.CLASS_EMBEDDINGS.VOCABULARY or data_set is None:
        return
    names = _class_names(cfg, data_set)
    renamed = names != classes_of(data_set)
    inner.vocabulary.set(names if renamed else None, seen_flags_of(data_set) if renamed else None)


def trained_classes(cfg: CfgNode) -> tuple[tuple[str, ...], list[int]]:
    """Names of the classes of the training set, as the model calls them, and 1 for each seen one; empty without any."""
    if not cfg.DATASETS.TRAIN:
        return (), []
    data_set = cfg.DATASETS.TRAIN[0]
    return _class_names(cfg, data_set), seen_flags_of(data_set)


def _use_prompt(cfg: CfgNode) -> None:
    node, adapter = cfg.MODEL.CLASS_EMBEDDINGS, cfg.MODEL.CLIP_ADAPTER
    texts = ClassTexts.parse(node.PROMPT)
    clip = load_clip(node.CLIP)
    adapter.CLIP_MODEL_NAME, adapter.SEPERATE_ADAPTER = node.CLIP, False
    adapter.PROMPT_DIM, cfg.MODEL.SEM_SEG_HEAD.EMBEDDING_DIM = clip.text_width, clip.embed_dim
    if texts.prompt is None:
        adapter.PROMPT_LEARNER, adapter.PREDEFINED_PROMPT_TEMPLATES = "predefined", list(texts.templates)
        return
    prompt = texts.prompt
    if prompt.class_specific or prompt.position != "end":
        raise InputError(
            f"MODEL.CLASS_EMBEDDINGS.PROMPT {node.PROMPT} is no single context before the class name; encode the "
            "classes with tools/export_class_embeddings.py and set MODEL.CLASS_EMBEDDINGS.PATH to the result"
        )
    if prompt.width != clip.text_width:
        raise InputError(
            f"MODEL.CLASS_EMBEDDINGS.PROMPT {node.PROMPT} has width {prompt.width}, but the text tower of "
            f"{clip.clip_id} has {clip.text_width}; set MODEL.CLASS_EMBEDDINGS.CLIP to the CLIP that it was trained on"
        )
    adapter.PROMPT_LEARNER, adapter.PROMPT_CHECKPOINT = "pomp", node.PROMPT
    adapter.PROMPT_SHAPE = (len(prompt.ctx), 0)


def _check_vocabulary(cfg: CfgNode) -> None:
    names = load_vocabulary(cfg.MODEL.CLASS_EMBEDDINGS.VOCABULARY).class_names
    counts = {name: len(classes_of(name)) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    if len(names) not in counts.values():
        found = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none is given"
        raise InputError(
            f"MODEL.CLASS_EMBEDDINGS.VOCABULARY {cfg.MODEL.CLASS_EMBEDDINGS.VOCABULARY} has {len(names)} classes, the "
            f"data sets have others ({found}); give one name for each class of a data set, in the order of its labels"
        )


def _class_names(cfg: CfgNode, data_set: str) -> tuple[str, ...]:
    """The vocabulary's names where it has as many as the data set, else the data set's."""
    own = classes_of(data_set)
    if not cfg.MODEL.CLASS_EMBEDDINGS.VOCABULARY:
        return own
    names = load_vocabulary(cfg.MODEL.CLASS_EMBEDDINGS.VOCABULARY).class_names
    return names if len(names) == len(own) else own


def _names_for(cfg: CfgNode, count: int) -> tuple[str, ...]:
    """Names for embeddings whose file tells none: those of a data set with as many classes."""
    for data_set in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        names = _class_names(cfg, data_set)
        if len(names) == count:
            return names
    raise InputError(
        f"{cfg.MODEL.CLASS_EMBEDDINGS.PATH} holds {count} class embeddings without names, and no data set of the "
        "config has as many classes; give a .safetensors file of tools/export_class_embeddings.py"
    )


def _adapters(model: nn.Module) -> Iterator[ClipAdapter]:
    return (module for module in model.modules() if isinstance(module, ClipAdapter))
