import numpy as np
import open_clip

from prompt_pretrain.shapeworld import parse_thing
from prompt_pretrain.shapeworld.captions import vocabulary_texts, write_caption
from prompt_pretrain.shapeworld.classes import COLOURS, PATTERNS, SHAPES
from prompt_pretrain.shapeworld.images import plan_scene
from prompt_pretrain.shapeworld.tiny_clip import known_tokens

STAR = parse_thing("striped red star")


def captions(count: int = 1500, **scene: str) -> list[str]:
    rng = np.random.default_rng(0)
    return [write_caption(plan_scene(STAR, index, **scene), rng) for index in range(count)]


def test_captions_are_true():
    wrong = (set(PATTERNS) | set(COLOURS) | set(SHAPES)) - {"striped", "red", "star"}
    for caption in captions():
        for phrase in ("a type of flower", "black and white"):
            caption = caption.replace(phrase, "")
        words = caption.replace(".", "").replace(",", "").split()
        assert "star" in words, caption
        assert not wrong & set(words), caption
        assert "{" not in caption, caption


def test_captions_vary_and_leave_things_out():
    texts = captions()
    assert len(set(texts)) > 600
    complete = sum("striped" in text and "red" in text for text in texts) / len(texts)
    assert 0.6 < complete < 0.85
    assert 0.15 < sum("photo" in text for text in texts) / len(texts) < 0.6
    assert any("sand" in text for text in texts)


def test_styles_are_told_by_their_words():
    assert sum("neon" in text or "glowing" in text for text in captions(style="neon")) > 300
    assert not any("neon" in text or "glowing" in text for text in captions(style="sketch"))


def test_known_tokens_cover_captions_and_templates():
    tokenizer = open_clip.SimpleTokenizer()
    known = set(known_tokens(tokenizer))
    texts = captions(300) + [template("striped red star") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    texts += list(vocabulary_texts()) + ["0 1 23!", "a b c; d-e"]
    for text in texts:
        assert set(tokenizer.encode(text)) <= known, text
    assert {tokenizer.sot_token_id, tokenizer.eot_token_id} <= known
    assert len(known) < 1000
