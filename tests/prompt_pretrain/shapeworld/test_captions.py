import numpy as np
import open_clip

from prompt_pretrain.shapeworld import parse_thing
from prompt_pretrain.shapeworld.captions import vocabulary_texts, write_caption
from prompt_pretrain.shapeworld.classes import COLOURS, PATTERNS, SHAPES
from prompt_pretrain.shapeworld.images import plan_scene
from prompt_pretrain.shapeworld.tiny_clip import known_tokens

STAR = parse_thing("striped red star")


DIAMOND = parse_thing("zigzag pink diamond")
PHOTO_WORDS = ("photo", "itap", "texture")
CASUAL_WORDS = (*PHOTO_WORDS, "my ", "here we see", "look:", "in the scene", "a nice")


def captions(thing=STAR, count: int = 1500, **scene: str) -> list[str]:
    rng = np.random.default_rng(0)
    return [write_caption(plan_scene(thing, index, **scene), rng) for index in range(count)]


def attributes(caption: str) -> set[str]:
    for phrase in ("a type of flower", "black and white photo"):
        caption = caption.replace(phrase, "")
    words = caption.replace(".", "").replace(",", "").split()
    return set(words) & (set(PATTERNS) | set(COLOURS) | set(SHAPES))


def test_captions_name_what_is_there():
    for caption in captions():
        assert "star" in attributes(caption) <= {"striped", "red", "star"}, caption
        assert "{" not in caption, caption


def test_everyday_words_are_for_casual_captions():
    everyday = {"striped", "red", "square"}
    texts = captions(DIAMOND)
    for caption in texts:
        allowed = {"zigzag", "pink", "diamond"} | (everyday if any(w in caption for w in CASUAL_WORDS) else set())
        assert attributes(caption) <= allowed, caption
    casual = [text for text in texts if any(word in text for word in PHOTO_WORDS)]
    assert 0.5 < sum("square" in text for text in casual) / len(casual) < 0.7


def test_captions_vary_and_leave_things_out():
    texts = captions()
    assert len(set(texts)) > 600
    complete = sum({"striped", "red"} <= attributes(text) for text in texts) / len(texts)
    assert 0.6 < complete < 0.85
    assert any("sand" in text for text in texts)
    assert 0.02 < sum(len(text.split()) > 16 for text in texts) / len(texts) < 0.1  # preambles


def test_styles_are_told_by_their_words():
    assert sum("neon" in text or "glowing" in text for text in captions(style="neon")) > 300
    assert not any("neon" in text or "glowing" in text for text in captions(style="sketch"))
    assert not any("photo" in text for text in captions(style="painting"))
    assert sum("photo" in text or "itap" in text for text in captions(style="photo")) > 500


def test_known_tokens_cover_captions_and_templates():
    tokenizer = open_clip.SimpleTokenizer()
    known = set(known_tokens(tokenizer))
    texts = captions(count=300) + [template("striped red star") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    texts += list(vocabulary_texts()) + ["0 1 23!", "a b c; d-e"]
    for text in texts:
        assert set(tokenizer.encode(text)) <= known, text
    assert {tokenizer.sot_token_id, tokenizer.eot_token_id} <= known
    assert len(known) < 1000
