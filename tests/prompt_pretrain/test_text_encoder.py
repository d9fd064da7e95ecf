import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from prompt_pretrain.clip import Clip, clip_from_config
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.prompt_tokens import tokenize_prompts, tokenize_texts
from prompt_pretrain.text_encoder import TextEncoder, encode_prompt, encode_templates
from prompt_pretrain.text_tower import find_text_tower, obstacle_to_prefix_sharing
from tests.golden.fill import fill

VISION = {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3}
NAMES = ["sea lion", "sea urchin", "great white shark", "lion", "bow_(ribbons)", "lion", "x", "sea lion cub of war"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    clip = clip_from_config({"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}, seed=1)
    fill(clip.model, skip=("logit_scale",))  # far from the initial near-identity, so that mistakes show
    return clip


def context(n_ctx: int, *, classes: int | None = None, seed: int = 0) -> Tensor:
    shape = (n_ctx, 32) if classes is None else (classes, n_ctx, 32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(0.3).requires_grad_()


def features_and_grad(encoder: TextEncoder, prompts, ctx: Tensor, **options) -> tuple[Tensor, Tensor]:
    features = encoder(prompts, ctx, **options)
    weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(5))
    (grad,) = torch.autograd.grad((features * weight).sum(), ctx)
    return features.detach(), grad


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("n_ctx", [1, 4, 7])
@pytest.mark.parametrize("class_specific", [False, True])
def test_sharing_prefixes_is_exact(clip: Clip, position: str, n_ctx: int, class_specific: bool) -> None:
    prompts = tokenize_prompts(NAMES, clip.tokenizer, n_ctx, position)
    ctx = context(n_ctx, classes=len(NAMES) if class_specific else None)
    plain = features_and_grad(TextEncoder(clip, "plain"), prompts, ctx)
    shared = features_and_grad(TextEncoder(clip, "shared_prefix"), prompts, ctx)
    assert_close(shared[0], plain[0], atol=2e-5, rtol=1e-5)
    assert_close(shared[1], plain[1], atol=1e-4, rtol=1e-4)


def test_gradients_agree_with_finite_differences(clip: Clip) -> None:
    prompts = tokenize_prompts(NAMES[:3], clip.tokenizer, 2)
    ctx = context(2)
    encoder = TextEncoder(clip)
    _, grad = features_and_grad(encoder, prompts, ctx)
    weight = torch.randn(3, 24, generator=torch.Generator().manual_seed(5))
    for row, column in ((0, 3), (1, 17)):
        step = torch.zeros_like(ctx)
        step[row, column] = 1e-2
        with torch.no_grad():
            change = ((encoder(prompts, ctx + step) - encoder(prompts, ctx - step)) * weight).sum() / 2e-2
        assert change.item() == pytest.approx(grad[row, column].item(), rel=2e-2, abs=1e-2)


@pytest.mark.parametrize("budget", [300_000, 600_000])
@pytest.mark.parametrize("method", ["shared_prefix", "plain"])
def test_a_memory_budget_changes_memory_but_no_numbers(
    clip: Clip, method: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prompt_pretrain.text_encoder._PLAIN_ROWS_PER_PASS", 3)
    if method == "plain":
        budget *= 10
    names = [f"{first} {second}" for first in ("red", "old", "tiny", "odd") for second in ("cat", "dog", "car", "tree")]
    prompts = tokenize_prompts(names, clip.tokenizer, 4)
    ctx = context(4)
    encoder = TextEncoder(clip, method)
    free = features_and_grad(encoder, prompts, ctx)
    bounded = features_and_grad(encoder, prompts, ctx, memory_budget=budget)
    assert_close(bounded[0], free[0], atol=2e-5, rtol=1e-5)
    assert_close(bounded[1], free[1], atol=1e-4, rtol=1e-4)
    assert saved_bytes(encoder, prompts, ctx, memory_budget=budget) < min(budget, saved_bytes(encoder, prompts, ctx))


def saved_bytes(encoder: TextEncoder, prompts, ctx: Tensor, **options) -> int:
    """Bytes of distinct storages kept for backward, the model's own weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.clip.model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = encoder(prompts, ctx, **options)
    del features
    return sum(sizes.values())


def test_a_budget_below_one_pass_is_an_error(clip: Clip) -> None:
    prompts = tokenize_prompts(NAMES, clip.tokenizer, 4)
    with pytest.raises(InputError, match=r"memory budget of 0\.0 MiB is below the .* MiB that one pass"):
        TextEncoder(clip)(prompts, context(4), memory_budget=1000)


def test_permuted_classes_give_permuted_features(clip: Clip) -> None:
    order = torch.randperm(len(NAMES), generator=torch.Generator().manual_seed(0))
    ctx = context(4).detach()
    encoder = TextEncoder(clip)
    straight = encoder(tokenize_prompts(NAMES, clip.tokenizer, 4), ctx)
    permuted = encoder(tokenize_prompts([NAMES[i] for i in order], clip.tokenizer, 4), ctx)
    assert_close(permuted, straight[order], atol=2e-5, rtol=1e-5)


def test_a_class_has_the_same_feature_alone_and_among_others(clip: Clip) -> None:
    prompts = tokenize_prompts(NAMES, clip.tokenizer, 3)
    ctx = context(3).detach()
    encoder = TextEncoder(clip)
    together = encoder(prompts, ctx)
    alone = torch.cat([encoder(prompts.select(torch.tensor([i])), ctx) for i in range(len(NAMES))])
    assert_close(alone, together, atol=2e-5, rtol=1e-5)
    assert torch.equal(together[3], together[5])  # one name, one feature


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_stays_near_float32(clip: Clip, dtype: torch.dtype) -> None:
    prompts = tokenize_prompts(NAMES, clip.tokenizer, 4)
    ctx = context(4)
    exact = features_and_grad(TextEncoder(clip), prompts, ctx)
    with torch.autocast("cpu", dtype=dtype):
        shared = features_and_grad(TextEncoder(clip), prompts, ctx)
        plain = features_and_grad(TextEncoder(clip, "plain"), prompts, ctx)
    for ours, theirs, reference in zip(shared, plain, exact, strict=True):
        assert ours.dtype == torch.float32
        error, plain_error = (ours - reference).norm(), (theirs - reference).norm()
        assert error < 0.05 * reference.norm()
        assert error < 2 * plain_error + 1e-3 * reference.norm()  # no worse than torch's own autocast


def test_templates_and_ensembles_equal_open_clip(clip: Clip) -> None:
    templates = ["a photo of a {}.", "art of the {}.", "{} in a video game"]
    names = [name.replace("_", " ") for name in NAMES]
    total = torch.zeros(len(NAMES), 24)
    for template in templates:
        tokens = open_clip.get_tokenizer("ViT-B-16")([template.format(name) for name in names])
        total += clip.model.encode_text(tokens, normalize=True).detach()
    assert_close(encode_templates(clip, NAMES, templates), F.normalize(total / 3, dim=1), atol=1e-5, rtol=1e-5)
    raw = clip.model.encode_text(open_clip.get_tokenizer("ViT-B-16")([f"a {name}" for name in names]))
    assert_close(encode_templates(clip, NAMES, ["a {}"], normalize=False), raw.detach(), atol=2e-5, rtol=1e-5)


def test_underscores_can_be_kept(clip: Clip) -> None:
    kept = encode_templates(clip, ["bow_tie"], ["a {}"], normalize=False, clean=False)
    raw = clip.model.encode_text(open_clip.get_tokenizer("ViT-B-16")(["a bow_tie"]))
    assert_close(kept, raw.detach(), atol=2e-5, rtol=1e-5)


def test_encode_prompt_checks_class_specific_counts(clip: Clip) -> None:
    prompt = SoftPrompt.random(2, 32, num_classes=4)
    with pytest.raises(InputError, match="contexts of 4 classes but 8 names were given"):
        encode_prompt(clip, NAMES, prompt)
    features = encode_prompt(clip, NAMES[:4], prompt)
    tokens = tokenize_prompts(NAMES[:4], clip.tokenizer, 2)
    assert_close(features, TextEncoder(clip, "plain")(tokens, prompt.ctx).detach(), atol=2e-5, rtol=1e-5)


def test_bad_calls_are_named(clip: Clip) -> None:
    prompts = tokenize_prompts(NAMES, clip.tokenizer, 4)
    with pytest.raises(InputError, match=r"shape \(4, 31\); .* need \(4, 32\) or, class by class, \(8, 4, 32\)"):
        TextEncoder(clip)(prompts, torch.zeros(4, 31))
    with pytest.raises(InputError, match="shape None"):
        TextEncoder(clip)(prompts)
    with pytest.raises(InputError, match="no class names to encode"):
        TextEncoder(clip)(tokenize_texts([], clip.tokenizer))
    with pytest.raises(InputError, match="method is 'fast'"):
        TextEncoder(clip, "fast")
    with pytest.raises(InputError, match="no template given"):
        encode_templates(clip, NAMES, [])
    with pytest.raises(InputError, match=r"template 'a photo' must hold one \{\}"):
        encode_templates(clip, NAMES, ["a photo"])


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({}, None),
        ({"ls_init_value": 0.3}, None),
        ({"no_causal_mask": True}, "not causal"),
        ({"pool_type": "last"}, "not the EOT token"),
        ({"block_type": "custom"}, "not standard residual attention blocks"),
    ],
)
def test_towers_that_cannot_share_take_the_plain_path(changes: dict, obstacle: str | None) -> None:
    text = TEXT | changes
    clip = clip_from_config({"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text, "quick_gelu": False})
    found = obstacle_to_prefix_sharing(find_text_tower(clip.model))
    assert (found is None) if obstacle is None else obstacle in (found or "")
    encoder = TextEncoder(clip)
    assert encoder.method == ("plain" if obstacle else "shared_prefix")
    texts = tokenize_texts(["a dog", "a big cat"], clip.tokenizer)
    reference = clip.model.encode_text(clip.tokenizer(["a dog", "a big cat"])).detach()
    assert_close(encoder(texts).detach(), reference, atol=2e-5, rtol=1e-5)
    if obstacle:
        with pytest.raises(InputError, match="cannot share prefixes"):
            TextEncoder(clip, "shared_prefix")


def test_custom_text_clip_shares_prefixes_too() -> None:
    vision = VISION | {"width": 32}
    model = open_clip.CustomTextCLIP(24, vision, TEXT, quick_gelu=True).eval()
    clip = Clip(model, clip_id="custom")
    prompts = tokenize_prompts(NAMES, clip.tokenizer, 3)
    ctx = context(3)
    encoder = TextEncoder(clip)
    assert encoder.method == "shared_prefix"
    plain = features_and_grad(TextEncoder(clip, "plain"), prompts, ctx)
    shared = features_and_grad(encoder, prompts, ctx)
    assert_close(shared[0], plain[0], atol=2e-5, rtol=1e-5)
    assert_close(shared[1], plain[1], atol=1e-4, rtol=1e-4)
