import pytest
import torch

from prompt_pretrain.baselines.files import load_learner, save_learner
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.clip import clip_from_config
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt_tokens import tokenize_around_names
from prompt_pretrain.regional.classes import regional_classes
from prompt_pretrain.regional.embeddings import (
    described_embeddings,
    regional_embeddings,
    save_embeddings,
    write_base_indices,
    write_entries,
)
from prompt_pretrain.regional.learner import RegionalPrompt, load_regional_prompt
from tests.prompt_pretrain.regional.tiny_lvis import CATEGORIES
from tests.prompt_pretrain.tiny_run import CLIP_CONFIG

CLASSES = regional_classes(CATEGORIES, "a.json")


@pytest.fixture(scope="module")
def clip():
    return clip_from_config(CLIP_CONFIG)


@pytest.mark.parametrize("n_ctx", [1, 3])
def test_tokens_are_those_of_the_text_with_vectors_in_the_places_of_x(clip, n_ctx):
    names, endings = ["sea_lion", "bow (ribbons)", "T-shirt"], ["a seal", "a knot (of ribbon)", ""]
    prompts = tokenize_around_names(names, endings, clip.tokenizer, n_ctx)
    marks = " ".join(["X"] * n_ctx)
    for row, name, ending in zip(range(3), names, endings, strict=True):
        text = f"{marks} {name.replace('_', ' ')} {marks} {ending}".strip() + "."
        expected = [clip.tokenizer.sot_token_id, *clip.tokenizer.encode(text), clip.tokenizer.eot_token_id]
        mark = clip.tokenizer.encode("X")[0]
        length = int(prompts.lengths[row])
        tokens = torch.where(prompts.ctx_index[row] >= 0, mark, prompts.tokens[row])[:length].tolist()
        assert tokens == expected
        slots = prompts.ctx_index[row][prompts.ctx_index[row] >= 0].tolist()
        assert slots == list(range(2 * n_ctx)) and prompts.ctx_index[row, 1] == 0


def test_prompts_that_cannot_be_are_named(clip):
    with pytest.raises(InputError, match="class 1 has an empty name"):
        tokenize_around_names(["a", "_"], ["", ""], clip.tokenizer, 1)
    with pytest.raises(InputError, match="class 'a' needs 8. tokens with its description .* shorten the description"):
        tokenize_around_names(["a"], ["b " * 80], clip.tokenizer, 1)
    with pytest.raises(InputError, match="initial words 'which is' are 2 but each context has 1"):
        RegionalPrompt(clip, n_ctx=1, words=("", "which is"))


def test_initial_words_give_the_features_of_the_written_text(clip):
    learner = RegionalPrompt(clip, n_ctx=2, words=("photo of", "which_is"))
    found = learner.class_features(learner.prepare(["dog_which_is_a_pet"]))
    with torch.no_grad():
        expected = clip.model.encode_text(clip.tokenizer(["photo of dog which is a pet."]))
    torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-4)


def test_files_round_trip_and_published_checkpoints_load(clip, tmp_path):
    learner = RegionalPrompt(clip, n_ctx=2, seed=5)
    same, other = RegionalPrompt(clip, n_ctx=2, seed=5), RegionalPrompt(clip, n_ctx=2, seed=6)
    assert torch.equal(learner.ctx1, same.ctx1) and not torch.equal(learner.ctx1, other.ctx1)
    state = learner.state_dict()
    assert list(state) == ["ctx1", "ctx2"] and state["ctx1"].shape == (2, clip.text_width)
    metadata = {"trainer": "RPL", "arguments": {"n_ctx": 2, "words": ["", ""], "seed": 5}}
    save_learner(tmp_path / "ours.pth", state, metadata)
    torch.save({"state_dict": {**state, "embedding": torch.zeros(3, 77, 16)}, "epoch": 6}, tmp_path / "published.pth")
    for file in ("ours.pth", "published.pth"):
        loaded = load_regional_prompt(tmp_path / file, clip)
        assert torch.equal(loaded.ctx2, learner.ctx2) and loaded.n_ctx == 2
    assert isinstance(load_learner(tmp_path / "ours.pth", clip), RegionalPrompt)
    torch.save({"state_dict": {"ctx": torch.zeros(2, 16)}}, tmp_path / "pomp.pth")
    with pytest.raises(InputError, match="pomp.pth holds no 'ctx1'"):
        load_regional_prompt(tmp_path / "pomp.pth", clip)
    save_learner(
        tmp_path / "probe.pth",
        {"weight": torch.zeros(2, 16), "bias": torch.zeros(2)},
        {"trainer": "LinearProbe", "arguments": {"num_classes": 2}},
    )
    with pytest.raises(InputError, match="holds a LinearProbe model"):
        load_regional_prompt(tmp_path / "probe.pth", clip)


def test_embeddings_in_every_container_serve_as_class_embeddings(clip, tmp_path):
    made = regional_embeddings(RegionalPrompt(clip), CLASSES, "lvis")
    assert made.embeddings.shape == (4, clip.embed_dim) and made.class_names[2] == "salt/pepper mill"
    for suffix, exact in ((".safetensors", 0.0), (".npy", 2e-3), (".pt", 2e-3)):
        save_embeddings(made, tmp_path / f"e{suffix}")
        loaded = ClassEmbeddings.load(tmp_path / f"e{suffix}", made.class_names)
        torch.testing.assert_close(loaded.embeddings, made.embeddings, atol=exact, rtol=exact)
    stored = torch.load(tmp_path / "e.pt", weights_only=True)
    assert stored.dtype == torch.float16
    assert ClassEmbeddings.load(tmp_path / "e.safetensors").clip_id == clip.clip_id
    with pytest.raises(InputError, match=r"written as .npy .* or .safetensors"):
        save_embeddings(made, tmp_path / "e.txt")
    described = described_embeddings(clip, CLASSES, "a photo of a {}.")
    with torch.no_grad():
        expected = clip.model.encode_text(clip.tokenizer(["a photo of a dog, which is a domestic animal."]))
    torch.testing.assert_close(described.embeddings[:1], expected, atol=1e-5, rtol=1e-4)


def test_the_published_lists(tmp_path):
    write_base_indices(CLASSES, tmp_path / "base.txt")
    assert (tmp_path / "base.txt").read_text() == "0, 1, 2"
    write_entries(CLASSES, tmp_path / "entries.txt")
    assert (tmp_path / "entries.txt").read_text().splitlines()[3] == "cow cow_which_is_a_farm_animal"
