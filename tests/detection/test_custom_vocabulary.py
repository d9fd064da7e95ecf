"""The prompt that new classes of a detector are encoded with."""

import pytest

import detection  # noqa: F401  makes a detectron2 importable
from detection.custom_vocabulary import class_texts_of
from detection.task import add_config
from detectron2.config import get_cfg
from prompt_pretrain.errors import InputError


def test_the_prompt_of_a_config_and_of_published_files() -> None:
    cfg = get_cfg()
    add_config(cfg)
    assert class_texts_of(cfg) == ("a", "ViT-B/32")
    assert class_texts_of(cfg, "my {}.")[0] == "my {}."
    cfg.MODEL.CLASS_EMBEDDINGS.PROMPT = "the {}."
    assert class_texts_of(cfg) == ("the {}.", "ViT-B/16")
    cfg.MODEL.CLASS_EMBEDDINGS.PROMPT = ""
    cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH = "own.npy"
    with pytest.raises(InputError, match="it names none; set MODEL.CLASS_EMBEDDINGS.PROMPT"):
        class_texts_of(cfg)
