import open_clip
import pytest
import torch

from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt_tokens import tokenize_prompts, tokenize_texts

TOKENIZER = open_clip.get_tokenizer("ViT-B-16")
SOT, EOT, DOT = TOKENIZER.sot_token_id, TOKENIZER.eot_token_id, TOKENIZER.encode(".")[0]


def spelled(prompts, row: int) -> list:
    """The row with ``v0``, ``v1`` … for context vectors."""
    length = int(prompts.lengths[row])
    pairs = zip(prompts.tokens[row, :length].tolist(), prompts.ctx_index[row, :length].tolist(), strict=True)
    return [token if slot < 0 else f"v{slot}" for token, slot in pairs]


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("end", [SOT, "v0", "v1", "v2", "N1", "N2", DOT, EOT]),
        ("middle", [SOT, "v0", "N1", "N2", "v1", "v2", DOT, EOT]),  # the second half is the longer one
        ("front", [SOT, "N1", "N2", "v0", "v1", "v2", DOT, EOT]),
    ],
)
def test_the_name_stands_where_the_position_says(position: str, expected: list) -> None:
    first, second = TOKENIZER.encode("sea lion")
    prompts = tokenize_prompts(["sea_lion"], TOKENIZER, 3, position)
    assert spelled(prompts, 0) == [{"N1": first, "N2": second}.get(token, token) for token in expected]


def test_a_closing_bracket_merges_with_the_dot_unless_kept_apart() -> None:
    merged = TOKENIZER.encode(").")
    assert len(merged) == 1
    joint = tokenize_prompts(["bow_(ribbons)"], TOKENIZER, 2)
    apart = tokenize_prompts(["bow_(ribbons)"], TOKENIZER, 2, joint_dot=False)
    assert spelled(joint, 0)[-2:] == [merged[0], EOT]
    assert spelled(apart, 0)[-3:] == [TOKENIZER.encode(")")[0], DOT, EOT]


def test_words_of_several_tokens_shift_the_name_as_in_the_release() -> None:
    words = "a zebrafinchlike"  # two words, more than two tokens
    tokens = TOKENIZER.encode(words)
    assert len(tokens) > 2
    prompts = tokenize_prompts(["dog"], TOKENIZER, 2, ctx_words=words)
    assert spelled(prompts, 0) == [SOT, "v0", "v1", *tokens[2:], *TOKENIZER.encode("dog."), EOT]


def test_texts_equal_open_clip_rows() -> None:
    texts = ["a photo of a dog.", "two  blanks &amp; CAPITALS", "x"]
    prompts = tokenize_texts(texts, TOKENIZER)
    reference = TOKENIZER(texts)
    assert torch.equal(prompts.tokens, reference[:, : prompts.tokens.shape[1]])
    assert prompts.lengths.tolist() == (reference.argmax(dim=1) + 1).tolist()
    assert (prompts.ctx_index == -1).all()


def test_a_text_that_spells_the_end_token_ends_there() -> None:
    prompts = tokenize_texts(["one<end_of_text>two"], TOKENIZER)
    assert spelled(prompts, 0) == [SOT, *TOKENIZER.encode("one"), EOT]


def test_select_keeps_order_and_repeats() -> None:
    prompts = tokenize_prompts(["a", "b b", "c"], TOKENIZER, 1)
    chosen = prompts.select(torch.tensor([2, 1, 2]))
    assert [spelled(chosen, row) for row in range(3)] == [spelled(prompts, row) for row in (2, 1, 2)]


def test_a_foreign_tokenizer_is_called_as_it_is() -> None:
    rows = torch.tensor([[5, 6, 1, 1], [7, 1, 1, 1]])
    prompts = tokenize_texts(["x", "y"], lambda texts: rows)
    assert torch.equal(prompts.tokens, rows)
    assert prompts.lengths.tolist() == [4, 4]


def test_bad_names_are_named() -> None:
    with pytest.raises(InputError, match=r"class name 'word word.* needs \d+ tokens with 16 context vectors"):
        tokenize_prompts(["dog", "word " * 70], TOKENIZER, 16)
    with pytest.raises(InputError, match="class 1 has an empty name"):
        tokenize_prompts(["dog", "_ "], TOKENIZER, 4)
    with pytest.raises(InputError, match="position is 'begin'; expected one of end, middle, front"):
        tokenize_prompts(["dog"], TOKENIZER, 4, "begin")
    with pytest.raises(InputError, match="needs 82 tokens but the text encoder takes 77"):
        tokenize_texts(["word " * 80], TOKENIZER)
