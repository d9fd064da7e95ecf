"""Class embeddings of any vocabulary."""

import logging

import pytest
import torch

from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.custom_vocabulary import check_class_names, embed_classes, embed_names
from prompt_pretrain.errors import InputError


def test_names_lists_and_comma_lists_agree(tmp_path: object) -> None:
    prompt, clip = "a photo of a {}.", "shapeworld-tiny"
    made = embed_classes(["striped red star", "plain blue ring"], prompt, clip, cache_dir=str(tmp_path))
    typed = embed_classes("striped red star,plain blue ring", prompt, clip, cache_dir=str(tmp_path))
    assert made.class_names == typed.class_names == ("striped red star", "plain blue ring")
    torch.testing.assert_close(made.embeddings, typed.embeddings)
    assert len(embed_classes("striped red star,", prompt, clip, cache_dir=str(tmp_path))) == 1


def test_names_for_embeddings_without_any() -> None:
    bare = ClassEmbeddings(torch.eye(2))
    assert embed_names(bare, ["a", "b"]).class_names == ("a", "b")
    with pytest.raises(InputError, match="2 class embeddings but the vocabulary has 3"):
        embed_names(bare, ["a", "b", "c"])


def test_bad_names(caplog: pytest.LogCaptureFixture) -> None:
    for names, message in (([], "is empty"), (["a", " "], "class 1 has the name ' '"), (["a", 3], "name 3")):
        with pytest.raises(InputError, match=message):
            check_class_names(names, "the list")
    with caplog.at_level(logging.WARNING):
        assert check_class_names(["Red car", "red_car"], "the list") == ("Red car", "red_car")
    assert "'red car' 2 times" in caplog.text
