import pytest
import torch
from torch.testing import assert_close

from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.classification.class_features import ClassFeatureSource
from prompt_pretrain.clip import clip_from_config
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt, save_prompt
from prompt_pretrain.text_encoder import encode_prompt, encode_templates

NAMES = ["red star", "blue_fish", "green leaf"]
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def clip():
    return clip_from_config(CONFIG, clip_id="tiny")


def test_a_prompt_file_stands_for_its_encoded_names(clip, tmp_path):
    prompt = SoftPrompt.random(4, 32, seed=3)
    path = tmp_path / "my_run" / "prompt_learner" / "model-best.pth.tar"
    save_prompt(path, prompt)
    source = ClassFeatureSource.parse("prompt", str(path))
    assert source.name == "my_run/model-best.pth.tar"
    assert_close(source.encode(clip, NAMES), encode_prompt(clip, NAMES, prompt))


def test_a_template_and_a_set_of_templates_and_a_name_for_the_row(clip):
    plain = ClassFeatureSource.parse("template", "hard prompt=a photo of a {}.")
    assert plain.name == "hard prompt"
    expected = encode_templates(clip, NAMES, ["a photo of a {}."])
    assert_close(torch.nn.functional.normalize(plain.encode(clip, NAMES), dim=1), expected)
    ensemble = ClassFeatureSource.parse("template", "imagenet_select_7")
    assert ensemble.name == "imagenet_select_7"
    assert_close(ensemble.encode(clip, NAMES).norm(dim=1), torch.ones(3))


def test_embeddings_must_belong_to_the_classes_and_the_clip(clip, tmp_path):
    stored = ClassEmbeddings.make(clip, NAMES, "a photo of a {}.")
    stored.save(tmp_path / "e.safetensors")
    source = ClassFeatureSource.parse("embeddings", str(tmp_path / "e.safetensors"))
    assert source.name == "e.safetensors"
    assert_close(source.encode(clip, NAMES), stored.embeddings)
    with pytest.raises(InputError, match="holds 3 class embeddings but the vocabulary has 2 names"):
        source.encode(clip, NAMES[:2])
    with pytest.raises(InputError, match="was made by tiny but other is in use"):
        source.encode(clip_from_config(CONFIG, clip_id="other"), NAMES)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("prompt", "missing.pth", "no prompt file missing.pth"),
        ("template", "imagenet81", "unknown template 'imagenet81'"),
        ("embeddings", "missing.npy", "no class embeddings missing.npy"),
    ],
)
def test_what_cannot_be_used_fails_when_it_is_named(kind, value, message):
    with pytest.raises(InputError, match=message):
        ClassFeatureSource.parse(kind, value)
