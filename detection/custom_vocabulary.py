"""What class embeddings of new classes are made with: the prompt and the CLIP of a detector."""

from pathlib import Path

from detectron2.config import CfgNode
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt

__all__ = ["class_texts_of"]
# What the released embedding files are made of: (part of the file's name, prompt, CLIP).
_PUBLISHED_TEXTS = (("_clip_a+cname", "a", "ViT-B/32"),)
_POMP_FILE = "_pomp+cname"


def class_texts_of(
    cfg: CfgNode, prompt: ClassTexts | SoftPrompt | str | None = None
) -> tuple[ClassTexts | SoftPrompt | str, str]:
    """The prompt and the name of the CLIP that class embeddings for a model of this config are made with.

    Args:
        prompt: takes the place of the config's.
    Raises:
        InputError: the config names neither a prompt nor a published embedding file.
    """
    node, path = cfg.MODEL.CLASS_EMBEDDINGS, cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH
    if node.PROMPT or prompt is not None:
        return (prompt if prompt is not None else node.PROMPT), node.CLIP
    for part, text, clip in _PUBLISHED_TEXTS:
        if part in Path(path).name:
            return text, clip
    why = "its embeddings come from a POMP prompt" if _POMP_FILE in Path(path).name else "it names none"
    raise InputError(
        f"new classes need the prompt that this model was trained with, and {why}; set MODEL.CLASS_EMBEDDINGS.PROMPT "
        "to the prompt's file or a template (and MODEL.CLASS_EMBEDDINGS.CLIP to its CLIP), or give class embeddings"
    )
