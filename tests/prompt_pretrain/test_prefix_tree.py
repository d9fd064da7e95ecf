import open_clip
import pytest
import torch

from prompt_pretrain.prefix_tree import PrefixTree, PromptRows
from prompt_pretrain.prompt_tokens import PromptTokens, tokenize_prompts

TOKENIZER = open_clip.get_tokenizer("ViT-B-16")
NAMES = ["sea lion", "sea urchin", "lion", "sea", "lion", "great white shark", "great white heron", "sea lion cub"]


def path_of_leaf(tree: PrefixTree, leaf: int) -> list[int]:
    """Nodes from below the trunk down to a leaf, from the levels of the leaves."""
    level = next(level for level in tree.leaf_levels if level.start <= leaf < level.stop)
    return level.ancestors[leaf - level.start].tolist()


def spelled_rows(rows: PromptRows, tree: PrefixTree) -> list[list]:
    """Every row of the tree as the tokens and context rows on the path to its leaf."""
    ctx = dict(zip(tree.ctx_nodes.tolist(), tree.ctx_rows.tolist(), strict=True))
    trunk_tokens, trunk_ctx = rows.trunk_codes()
    trunk = [
        token if slot < 0 else ("ctx", slot)
        for token, slot in zip(trunk_tokens.tolist(), trunk_ctx.tolist(), strict=True)
    ]
    nodes = [("ctx", ctx[node]) if node in ctx else int(tree.tokens[node]) for node in range(len(tree))]
    return [trunk + [nodes[node] for node in path_of_leaf(tree, int(leaf))] for leaf in tree.leaf_of_row]


def expected_rows(prompts: PromptTokens, class_specific: bool) -> list[list]:
    rows = []
    for i in range(len(prompts)):
        pairs = zip(prompts.tokens[i].tolist(), prompts.ctx_index[i].tolist(), strict=True)
        shift = i * prompts.n_ctx if class_specific else 0
        row = [token if slot < 0 else ("ctx", slot + shift) for token, slot in pairs]
        rows.append(row[: int(prompts.lengths[i])])
    return rows


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_every_prompt_can_be_read_back_from_the_tree(position: str, class_specific: bool) -> None:
    prompts = tokenize_prompts(NAMES, TOKENIZER, 3, position)
    rows = PromptRows.from_prompts(prompts, class_specific)
    spelled = spelled_rows(rows, rows.tree(0, len(rows.codes), level_entries=5))
    assert [spelled[row] for row in rows.row_of_prompt] == expected_rows(prompts, class_specific)


def test_equal_beginnings_are_one_node_and_equal_names_one_row() -> None:
    prompts = tokenize_prompts(NAMES, TOKENIZER, 3)
    rows = PromptRows.from_prompts(prompts, class_specific=False)
    tree = rows.tree(0, len(rows.codes), level_entries=100)
    paths = {tuple(map(str, row[: end + 1])) for row in expected_rows(prompts, False) for end in range(len(row))}
    assert rows.trunk == 4  # SOT and three vectors
    assert len(tree) == len(paths) - rows.trunk == rows.new_nodes().sum()
    assert len(rows.codes) == len(set(NAMES))
    assert rows.row_of_prompt[2] == rows.row_of_prompt[4]


def test_ancestors_lead_from_the_trunk_to_the_node_itself() -> None:
    rows = PromptRows.from_prompts(tokenize_prompts(NAMES, TOKENIZER, 2), class_specific=False)
    tree = rows.tree(0, len(rows.codes), level_entries=4)
    seen = []
    for level in tree.levels:
        nodes = torch.arange(level.start, level.stop)
        assert level.ancestors.numel() <= max(4, level.ancestors.shape[1])
        assert torch.equal(level.ancestors[:, -1], nodes)
        steps = torch.arange(level.ancestors.shape[1])
        assert torch.equal(tree.positions[level.ancestors], (rows.trunk + steps).expand(len(nodes), -1))
        seen += nodes.tolist()
    assert seen == list(range(len(tree)))


def test_one_class_leaves_its_end_token_outside_the_trunk() -> None:
    rows = PromptRows.from_prompts(tokenize_prompts(["dog"], TOKENIZER, 4), class_specific=False)
    tree = rows.tree(0, 1, level_entries=10)
    assert rows.trunk == int(rows.lengths[0]) - 1
    assert tree.tokens.tolist() == [TOKENIZER.eot_token_id]
