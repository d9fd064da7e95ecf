import json

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.clip import Clip, clip_from_config
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt, save_prompt
from prompt_pretrain.vocabulary import Vocabulary

TINY = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
NAMES = Vocabulary(
    "demo",
    ("traffic_light", "bow_(decorative_ribbons)", "car/ truck"),
    synonyms=(("traffic_light", "stoplight"), ("bow",), ("car", "lorry", "truck")),
)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clip_from_config(TINY)


def encoded(clip: Clip, *texts: str) -> torch.Tensor:
    with torch.no_grad():
        return clip.model.encode_text(clip.tokenizer(list(texts)))


@pytest.mark.parametrize(
    ("prompt", "spelling", "texts"),
    [
        ("a", None, ["a traffic_light", "a bow_(decorative_ribbons)", "a car/ truck"]),
        ("none", None, ["traffic_light", "bow_(decorative_ribbons)", "car/ truck"]),
        ("a", "fix_space", ["a traffic light", "a bow (decorative ribbons)", "a car/ truck"]),
        ("photo", "use_underscore", ["a photo of a traffic_light", "a photo of a bow_(decorative_ribbons)",
                                     "a photo of a car/truck"]),
        ("my {}.", None, ["my traffic light.", "my bow (decorative ribbons).", "my car/ truck."]),
        ("eurosat", "verbatim", ["a centered satellite photo of traffic_light.",
                                 "a centered satellite photo of bow_(decorative_ribbons).",
                                 "a centered satellite photo of car/ truck."]),
    ],
)  # fmt: skip
def test_published_dump_rules(clip, prompt, spelling, texts):
    found = ClassTexts.parse(prompt, spelling=spelling).encode(clip, NAMES)
    assert_close(found, encoded(clip, *texts), rtol=1e-4, atol=1e-5)


def test_synonyms_are_averaged_raw(clip):
    found = ClassTexts.parse("a", average_synonyms=True).encode(clip, NAMES)
    expected = [
        encoded(clip, "a traffic_light", "a stoplight").mean(0),
        encoded(clip, "a bow")[0],
        encoded(clip, "a car", "a lorry", "a truck").mean(0),
    ]
    assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_ensembles_are_averaged_normalised(clip):
    found = ClassTexts.of(["a {}", "the {}."]).encode(clip, Vocabulary("v", ("dog", "cat")))
    parts = [F.normalize(encoded(clip, *texts), dim=1) for texts in (("a dog", "a cat"), ("the dog.", "the cat."))]
    assert_close(found, F.normalize(parts[0] + parts[1], dim=1), rtol=1e-4, atol=1e-5)
    assert len(ClassTexts.parse("imagenet80").templates) == 80


def test_learned_prompt_takes_clean_names_and_the_joint_dot(clip, tmp_path):
    # Vectors equal to the embeddings of words give the features of these words.
    prompt = SoftPrompt.from_words("photo of", clip)
    save_prompt(tmp_path / "p.pth.tar-5", prompt)
    texts = ClassTexts.parse(str(tmp_path / "p.pth.tar-5"))
    expected = encoded(clip, "photo of traffic light.", "photo of bow (decorative ribbons).", "photo of car/ truck.")
    assert_close(texts.encode(clip, NAMES), expected, rtol=1e-4, atol=1e-5)
    tidy = ClassTexts.parse(str(tmp_path / "p.pth.tar-5"), spelling="use_underscore")
    expected = encoded(clip, "photo of traffic light.", "photo of bow (decorative ribbons).", "photo of car/truck.")
    assert_close(tidy.encode(clip, NAMES), expected, rtol=1e-4, atol=1e-5)


def test_a_file_called_like_a_detection_prompt_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert ClassTexts.parse("a").templates == ("a {}",)


def test_identity_covers_what_embeddings_depend_on():
    base = ClassTexts.parse("a {}")
    others = [
        base.identity(Vocabulary("v", ("b", "a"))),
        ClassTexts.parse("a {}", spelling="verbatim").identity(NAMES),
        ClassTexts.parse("the {}").identity(NAMES),
        ClassTexts.parse("a {}", average_synonyms=True).identity(NAMES),
        ClassTexts.of(SoftPrompt.random(2, 16)).identity(NAMES),
        ClassTexts.of(SoftPrompt.random(2, 16, seed=1)).identity(NAMES),
        base.identity(NAMES),
    ]
    assert len(set(others)) == len(others)
    assert base.identity(NAMES) == ClassTexts.of(("a {}",)).identity(Vocabulary("other", NAMES.class_names))
    assert json.loads(base.identity(NAMES))["class_names"] == list(NAMES.class_names)


def test_descriptions_are_one_line():
    assert ClassTexts.parse("a {}").description == "a {}"
    assert ClassTexts.parse("vild").description == "14 templates"
    assert ClassTexts.of(SoftPrompt.random(2, 4)).description.startswith("prompt ")


def test_bad_recipes_are_explained(clip):
    with pytest.raises(InputError, match="either a learned prompt or templates"):
        ClassTexts()
    with pytest.raises(InputError, match="unknown spelling 'x'; choose one of clean, verbatim"):
        ClassTexts(templates=("a {}",), spelling="x")
    with pytest.raises(InputError, match="synonyms are averaged with templates only"):
        ClassTexts(prompt=SoftPrompt.random(1, 4), average_synonyms=True)
    with pytest.raises(InputError, match="no prompt given"):
        ClassTexts.parse(" ")
    with pytest.raises(InputError, match="no prompt file missing.pth.tar-3"):
        ClassTexts.parse("missing.pth.tar-3")
    with pytest.raises(InputError, match="vocabulary v has no synonyms to average"):
        ClassTexts.parse("a", average_synonyms=True).check(Vocabulary("v", ("a",)))
    with pytest.raises(InputError, match="contexts of 5 classes but vocabulary demo has 3"):
        ClassTexts.of(SoftPrompt.random(2, 16, num_classes=5)).check(NAMES)
    with pytest.raises(InputError, match="the prompt has width 8 but config:.* has text width 16"):
        ClassTexts.of(SoftPrompt.random(2, 8)).encode(clip, NAMES)
    with pytest.raises(InputError, match="long"):
        ClassTexts.parse("a {}").encode(clip, Vocabulary("v", ("dog", "long " * 90)))
