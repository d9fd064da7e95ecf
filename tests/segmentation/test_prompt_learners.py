"""Prompt learners, their files and errors."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt, save_prompt
from segmentation.prompt_learners import LEARNERS, PompPrompt, PredefinedPrompts, TwoSidedPrompt, build_prompt_learner
from tests.segmentation.tiny_models import WIDTH, tiny_clip

NAMES = ["sand", "wall-concrete", "diningtable"]
CLIP = tiny_clip()


def node(kind: str, **values: Any) -> SimpleNamespace:
    defaults = {
        "PROMPT_LEARNER": kind,
        "PREDEFINED_PROMPT_TEMPLATES": ["a {}."],
        "PROMPT_DIM": WIDTH,
        "PROMPT_SHAPE": (4, 2),
        "PROMPT_CHECKPOINT": "",
    }
    return SimpleNamespace(**defaults | values)


@pytest.mark.parametrize("kind", LEARNERS)
def test_every_learner_gives_unit_features_that_only_soft_prompts_train(kind: str) -> None:
    learner = build_prompt_learner(node(kind), CLIP, stage=2)
    features = learner.encode(CLIP, NAMES)
    assert_close(features.norm(dim=1), torch.ones(3))
    assert_close(features[[2, 0]], learner.encode(CLIP, [NAMES[2], NAMES[0]]), rtol=1e-4, atol=1e-5)
    soft = kind in ("learnable", "pomp", "pomp_tuned")
    assert features.requires_grad == soft
    if soft:
        features[:, 0].sum().backward()
        assert all(float(parameter.grad.abs().max()) > 0 for parameter in learner.parameters())


def test_templates_are_averaged_and_names_taken_verbatim() -> None:
    texts = ["a wall_x.", "the wall_x!"]
    each = F.normalize(CLIP.model.encode_text(CLIP.tokenizer(texts)), dim=1)
    found = PredefinedPrompts(["a {}.", "the {}!"]).encode(CLIP, ["wall_x"])
    assert_close(found[0], F.normalize(each.mean(0), dim=0), rtol=1e-4, atol=1e-5)


def test_a_soft_prompt_is_the_sequence_of_its_parts() -> None:
    learner = TwoSidedPrompt(WIDTH, (2, 1))
    learner.take_signals(CLIP)
    name = CLIP.model.token_embedding(torch.tensor(CLIP.tokenizer.encode("red star")))
    parts = [learner.start_signal, learner.prefix_prompt, name, learner.suffix_prompt]
    parts += [learner.dot_signal, learner.end_signal]
    row = torch.cat(parts)
    row = torch.cat([row, learner.pad_signal.expand(77 - len(row), -1)]) + CLIP.model.positional_embedding
    x = CLIP.model.ln_final(CLIP.model.transformer(row[None], attn_mask=CLIP.model.attn_mask))
    expected = F.normalize(x[0, sum(map(len, parts)) - 1] @ CLIP.model.text_projection, dim=0)
    assert_close(learner.encode(CLIP, ["red star"])[0], expected, rtol=1e-4, atol=1e-5)


def test_lengths_of_0_have_no_parameter() -> None:
    assert [name for name, _ in TwoSidedPrompt(WIDTH, (3, 0)).named_parameters()] == ["prefix_prompt"]
    assert [name for name, _ in TwoSidedPrompt(WIDTH, (0, 3)).named_parameters()] == ["suffix_prompt"]
    pomp = build_prompt_learner(node("pomp"), CLIP, stage=1)
    assert {name: tuple(p.shape) for name, p in pomp.named_parameters()} == {"ctx": (4, WIDTH)}  # no suffix


def test_the_second_clip_of_a_learner_is_used() -> None:
    learner = PompPrompt(WIDTH, 2)
    first = learner.encode(CLIP, NAMES)
    other = tiny_clip()
    with torch.no_grad():
        other.model.text_projection.mul_(-1)
    assert_close(learner.encode(other, NAMES), -first)


def stage_1_file(path: Path, learner: torch.nn.Module) -> str:
    entries = {f"clip_adapter.prompt_learner.{name}": value for name, value in learner.state_dict().items()}
    torch.save({"model": entries | {"clip_adapter.clip_model.x": torch.zeros(1)}, "iteration": 3}, path)
    return str(path)


@pytest.mark.parametrize(("kind", "stage"), [("learnable", 2), ("pomp_tuned", 2), ("learnable", 1)])
def test_prompts_of_stage_1_are_taken_over_and_frozen(tmp_path: Path, kind: str, stage: int) -> None:
    old = build_prompt_learner(node(kind), CLIP, stage=1)
    path = stage_1_file(tmp_path / "model_final.pth", old)
    new = build_prompt_learner(node(kind, PROMPT_CHECKPOINT=path), CLIP, stage=stage)
    ignored = stage == 1  # stage 1 starts "learnable" at random
    for (name, one), (_, other) in zip(old.named_parameters(), new.named_parameters(), strict=True):
        assert torch.equal(one, other) != ignored, name
        assert other.requires_grad == ignored
    for name, buffer in new.named_buffers():
        assert float(buffer.abs().max()) > 0, name  # taken from CLIP


@pytest.mark.parametrize("stage", [1, 2])
def test_pretrained_prompts_are_tuned_by_stage_1_only(tmp_path: Path, stage: int) -> None:
    ctx = torch.randn(4, WIDTH)
    entries = {"ctx": ctx, "token_prefix": torch.zeros(9, 1, WIDTH), "token_suffix": torch.zeros(9, 72, WIDTH)}
    torch.save({"state_dict": entries, "epoch": 20}, tmp_path / "pomp.pth.tar")
    learner = build_prompt_learner(node("pomp", PROMPT_CHECKPOINT=str(tmp_path / "pomp.pth.tar")), CLIP, stage=stage)
    assert torch.equal(learner.ctx, ctx)
    assert learner.ctx.requires_grad == (stage == 1)


def fails(message: str, config: SimpleNamespace, **options: Any) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_prompt_learner(config, CLIP, stage=2, **options)
    assert "\n" not in str(caught.value)


def test_errors_of_configs() -> None:
    key = "MODEL.CLIP_ADAPTER"
    fails(f"{key}.PROMPT_LEARNER is 'magic'; expected one of predefined, imagenet", node("magic"))
    fails("^REGION.PROMPT_LEARNER is 'magic'", node("magic"), where="REGION")
    fails(rf"{key}.PROMPT_DIM is 512, but .* has width {WIDTH}; set it", node("pomp", PROMPT_DIM=512))
    fails(rf"{key}.PROMPT_SHAPE is \(0, 0\); expected at least one", node("learnable", PROMPT_SHAPE=(0, 0)))
    fails(rf"{key}.PROMPT_SHAPE is \(0, 2\)", node("pomp", PROMPT_SHAPE=(0, 2)))
    fails(
        "PREDEFINED_PROMPT_TEMPLATES: 'a thing' must hold one {}",
        node("predefined", PREDEFINED_PROMPT_TEMPLATES=["a thing"]),
    )
    with pytest.raises(InputError, match="'word word.*' needs .* tokens .*shorten the name"):
        build_prompt_learner(node("pomp"), CLIP, stage=2).encode(CLIP, ["word " * 75])


def test_errors_of_files(tmp_path: Path) -> None:
    key = "MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT"
    path = tmp_path / "prompt.pth"
    fails(f"{key}: no file .*prompt.pth; train stage 1 first", node("learnable", PROMPT_CHECKPOINT=str(path)))
    fails(f"{key}: no prompt file .*prompt.pth", node("pomp", PROMPT_CHECKPOINT=str(path)))
    file = stage_1_file(path, PompPrompt(WIDTH, 4))
    fails(
        f"{key}: .*prompt.pth has no prompt_learner.prefix_prompt, only ctx", node("learnable", PROMPT_CHECKPOINT=file)
    )
    file = stage_1_file(path, PompPrompt(WIDTH, 16))
    fails(
        rf"{key}: ctx in .*prompt.pth has shape \(16, {WIDTH}\), PROMPT_SHAPE and PROMPT_DIM ask for \(4, {WIDTH}\)",
        node("pomp_tuned", PROMPT_CHECKPOINT=file),
    )
    torch.save({"state_dict": {"ctx": torch.zeros(16, WIDTH)}}, path)
    fails(rf"{key}: no 'ctx' of shape \(4, {WIDTH}\).*found \(16, {WIDTH}\)", node("pomp", PROMPT_CHECKPOINT=str(path)))
    torch.save({"model": {}}, path)
    fails("only no prompt at all", node("pomp_tuned", PROMPT_CHECKPOINT=str(path)))
    path.write_bytes(b"nothing")
    fails("prompt.pth is no torch file or is cut short", node("pomp_tuned", PROMPT_CHECKPOINT=str(path)))
    save_prompt(tmp_path / "middle.pt", SoftPrompt(torch.randn(4, WIDTH), "middle"))
    fails("has the class name in its middle", node("pomp", PROMPT_CHECKPOINT=str(tmp_path / "middle.pt")))
    save_prompt(tmp_path / "each.pt", SoftPrompt(torch.randn(7, 4, WIDTH)))
    fails("has one context per class", node("pomp", PROMPT_CHECKPOINT=str(tmp_path / "each.pt")))
