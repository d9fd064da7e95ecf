"""The text tower that encodes captions: equal to the CLIP it comes from, frozen, fetched only where needed."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from detection import caption_encoder
from detection.caption_encoder import CaptionEncoder, build_caption_encoder
from prompt_pretrain.clip import Clip, clip_from_config, load_clip
from prompt_pretrain.errors import InputError

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
TINY = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 16},
    "text_cfg": TEXT,
}
SIZES = {"width": 16, "layers": 2, "heads": 2, "embed_dim": 12}
CAPTIONS = ["a red star", "two blue discs on a very long and winding road", ""]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clip_from_config(TINY)


def test_features_are_those_of_the_clip(clip: Clip) -> None:
    encoder = CaptionEncoder.from_clip(clip)
    features = encoder(CAPTIONS)
    assert_close(features, clip.model.encode_text(clip.tokenizer(CAPTIONS)), rtol=1e-4, atol=1e-5)
    assert encoder.embed_dim == 12 and features.dtype == torch.float32


def test_activation_and_sizes_follow_the_clip() -> None:
    plain = clip_from_config({**TINY, "quick_gelu": False, "text_cfg": {**TEXT, "context_length": 20}})
    encoder = CaptionEncoder.from_clip(plain)
    assert_close(encoder(CAPTIONS[:1]), plain.model.encode_text(plain.tokenizer(CAPTIONS[:1])), rtol=1e-4, atol=1e-5)


def test_the_tower_is_frozen(clip: Clip) -> None:
    encoder = CaptionEncoder.from_clip(clip).train()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(CAPTIONS).requires_grad


def test_of_a_long_caption_a_random_window_remains(clip: Clip) -> None:
    encoder = CaptionEncoder.from_clip(clip)
    words = " ".join(["red", "star", "blue", "disc"] * 25)  # 100 tokens and two for start and end
    windows = set()
    for seed in range(30):
        torch.manual_seed(seed)
        tokens = encoder.tokenize([words, "a"])
        assert tokens.shape == (2, 77) and not tokens[1, 3:].any()
        windows.add(tuple(tokens[0].tolist()))
    assert 5 < len(windows) <= 26
    assert encoder([words]).isfinite().all()


def test_a_fresh_tower_fetches_its_weights_when_it_first_encodes(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    monkeypatch.setattr(caption_encoder, "load_clip", lambda name: fetched.append(name) or clip)
    encoder = CaptionEncoder("the clip", **SIZES)
    assert not fetched
    assert_close(encoder(CAPTIONS), CaptionEncoder.from_clip(clip)(CAPTIONS))
    encoder(CAPTIONS)
    assert fetched == ["the clip"]


def test_weights_of_a_checkpoint_are_kept(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_encoder, "load_clip", lambda name: pytest.fail("fetched"))
    encoder = CaptionEncoder("the clip", **SIZES)
    encoder.load_state_dict(CaptionEncoder.from_clip(clip).state_dict())
    assert encoder(CAPTIONS).any()


def test_the_published_tower_is_built_without_its_weights() -> None:
    with torch.device("meta"):
        encoder = build_caption_encoder("ViT-B/32")
    assert encoder.state_dict()["token_embedding.weight"].shape == (49408, 512)


def test_weights_that_cannot_be_fetched_are_an_error(tmp_path: Path) -> None:
    encoder = CaptionEncoder(str(tmp_path / "missing.pt"), **SIZES)
    with pytest.raises(InputError, match=r"captions need the text tower of .*missing\.pt \(MODEL\.CAPTION_CLIP\)"):
        encoder(CAPTIONS)


def test_other_towers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "first_token.json"
    file.write_text(json.dumps({**TINY, "text_cfg": {**TEXT, "pool_type": "first"}}))
    with pytest.raises(InputError, match=r"cannot encode captions: it pools 'first'.*set MODEL\.CAPTION_CLIP"):
        build_caption_encoder(str(file))


def test_the_packaged_clip_encodes_captions() -> None:
    features = build_caption_encoder("shapeworld-tiny")(["a striped red star"])
    clip = load_clip("shapeworld-tiny")
    assert_close(features, clip.model.encode_text(clip.tokenizer(["a striped red star"])), rtol=1e-4, atol=1e-5)
