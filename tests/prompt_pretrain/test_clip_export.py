"""The towers of a CLIP as graphs: what the library computes, from tensors alone."""

import pytest
import torch
import torch.nn.functional as F

from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.clip import Clip, clip_from_config, load_clip
from prompt_pretrain.clip_export import classifier, image_tower, text_tower, token_rows
from prompt_pretrain.errors import InputError
from prompt_pretrain.model_export import difference, export_program
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.prompt_tokens import tokenize_prompts, tokenize_texts

CONFIG = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
NAMES = ["dog", "traffic_light", "sea lion (animal)"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clip_from_config(CONFIG)


def test_classifier_compares_images_with_any_embeddings(clip):
    part = classifier(clip)
    images, rows = part.inputs["images"], torch.randn(7, 12)
    pixels = (images / 255 - torch.tensor(clip.mean).view(3, 1, 1)) / torch.tensor(clip.std).view(3, 1, 1)
    features = clip.encode_image(pixels)
    expected = clip.logit_scale * F.normalize(features, dim=1) @ F.normalize(rows, dim=1).t()
    (found,) = part.run({"images": images, "class_embeddings": 3 * rows})
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(image_tower(clip).run({"images": images})[0], features)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_text_tower_gives_the_class_embeddings_of_a_prompt(clip, position):
    prompt = SoftPrompt.random(4, 16, position=position)
    rows = token_rows(tokenize_prompts(NAMES, clip.tokenizer, 4, position, context_length=20), 20)
    (found,) = text_tower(clip, prompt).run({"tokens": rows})
    expected = ClassEmbeddings.make(clip, NAMES, prompt).embeddings
    torch.testing.assert_close(F.normalize(found, dim=1), F.normalize(expected, dim=1))


def test_text_tower_without_prompt_takes_what_the_tokenizer_gives(clip):
    rows = clip.tokenizer(["a dog", "a striped red star"], context_length=20)
    (found,) = text_tower(clip).run({"tokens": rows})
    torch.testing.assert_close(found, clip.model.encode_text(rows))
    ours = token_rows(tokenize_texts(["a dog", "a striped red star"], clip.tokenizer, context_length=20), 20)
    assert torch.equal(ours, rows)


def test_token_rows_mark_context_vectors(clip):
    (row,) = token_rows(tokenize_prompts(["dog"], clip.tokenizer, 3, context_length=20), 20).tolist()
    sot, eot = clip.tokenizer.sot_token_id, clip.tokenizer.eot_token_id
    assert row[:4] == [sot, -1, -2, -3] and row[row.index(eot) + 1 :] == [0] * (19 - row.index(eot))


def test_graphs_serve_other_numbers_of_texts(clip):
    part = text_tower(clip, SoftPrompt.random(2, 16))
    graph = export_program(part)
    assert not any("visual" in name for name in graph.state_dict)
    for inputs in (part.inputs, *part.others):
        assert difference((graph.module()(**inputs),), part.run(inputs)) < 1e-6


def test_descriptions_name_axes_of_any_size(clip):
    described = classifier(clip).describe()
    images, rows = described["inputs"]
    assert described["outputs"] == [{"name": "logits", "shape": ["images", "classes"]}]
    assert images == {"name": "images", "type": "float32", "shape": ["images", 3, 16, 16]}
    assert rows["shape"] == ["classes", 12]
    facts = text_tower(clip, SoftPrompt.random(2, 16)).describe()
    assert facts["prompt"] == {"n_ctx": 2, "class_position": "end"}
    assert facts["inputs"][0]["shape"] == ["texts", 20] and len(facts["example"]["tokens"]) == 3


def test_what_cannot_be_exported_is_an_error(clip, monkeypatch):
    with pytest.raises(InputError, match="contexts of 3 classes of its own, so its vocabulary is closed"):
        text_tower(clip, SoftPrompt.random(2, 16, num_classes=3))
    with pytest.raises(InputError, match="vectors of width 8, config:.* needs 16"):
        text_tower(clip, SoftPrompt.random(2, 8))
    with pytest.raises(InputError, match="is exported from the CPU in fp32"):
        classifier(load_clip("shapeworld-tiny", precision="bf16"))
    monkeypatch.setattr(clip.model, "text_pool_type", "last")
    with pytest.raises(InputError, match="cannot be exported: it pools 'last', not the EOT token; export class emb"):
        text_tower(clip)
