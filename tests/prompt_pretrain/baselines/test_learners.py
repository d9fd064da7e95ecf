import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from prompt_pretrain.baselines.files import LEARNERS, load_learner, load_published, save_learner
from prompt_pretrain.baselines.learners import LASP, VPT, CoCoOp, LinearProbe, MaPLe
from prompt_pretrain.clip import Clip, clip_from_config
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.prompt_tokens import tokenize_prompts
from prompt_pretrain.text_encoder import TextEncoder
from tests.prompt_pretrain import tiny_run

NAMES = tiny_run.CLASS_NAMES
CONFIG = tiny_run.CLIP_CONFIG | {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 24, "patch_size": 8, "head_width": 8},
}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clip_from_config(CONFIG)


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def features(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(0))


def make(name: str, clip: Clip):
    options = {"VPT": {"depth": 2}, "MaPLe": {"depth": 2}, "LinearProbe": {"num_classes": len(NAMES)}}
    return LEARNERS[name](clip, **options.get(name, {}))


def logits_of(learner, inputs: torch.Tensor) -> torch.Tensor:
    classes = learner.prepare(NAMES)
    return learner.logits(inputs, classes, learner.class_features(classes))


@pytest.mark.parametrize("name", LEARNERS)
def test_every_parameter_learns_and_the_towers_do_not(clip, name):
    learner = make(name, clip)
    logits, extra = learner.training_step(images() if learner.takes_images else features(), learner.prepare(NAMES))
    assert logits.shape == (3, len(NAMES)) and logits.dtype == torch.float32
    loss = F.cross_entropy(logits, torch.arange(3))
    (loss if extra is None else loss + extra).backward()
    for key, parameter in learner.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


@pytest.mark.parametrize("name", LEARNERS)
def test_a_batch_is_its_images_one_by_one(clip, name):
    learner = make(name, clip)
    inputs = images() if learner.takes_images else features()
    with torch.no_grad():
        single = torch.cat([logits_of(learner, row[None]) for row in inputs])
        assert_close(logits_of(learner, inputs), single, atol=2e-5, rtol=1e-5)


def test_cocoop_without_a_shift_is_the_prompt_alone(clip):
    learner = CoCoOp(clip)
    torch.nn.init.zeros_(learner.prompt_learner.meta_net.linear2.weight)
    torch.nn.init.zeros_(learner.prompt_learner.meta_net.linear2.bias)
    ctx = learner.prompt_learner.ctx.detach()
    assert_close(ctx, SoftPrompt.from_words("a photo of a", clip).ctx.detach())
    weights = TextEncoder(clip)(tokenize_prompts(NAMES, clip.tokenizer, 4), ctx)
    expected = clip.logit_scale * F.normalize(features(), dim=1) @ F.normalize(weights, dim=1).T
    assert_close(logits_of(learner, features()).detach(), expected, atol=1e-4, rtol=1e-4)


def test_depth_one_is_the_shallow_prompt(clip):
    deep, shallow = VPT(clip, depth=2), VPT(clip, depth=1)
    assert [name for name, _ in shallow.named_parameters()] == ["image_encoder.VPT"]
    assert [name for name, _ in deep.named_parameters()][1] == "image_encoder.transformer.resblocks.1.VPT_shallow"
    shallow.image_encoder.VPT.data.copy_(deep.image_encoder.VPT.data)
    carried = shallow.image_features(images())
    assert not torch.allclose(carried, deep.image_features(images()))
    # One token more than the frozen tower sees, and it matters.
    assert not torch.allclose(carried, clip.encode_image(images()))


@pytest.mark.parametrize("depth", [1, 2])
def test_deep_texts_are_the_same_on_the_plain_path(clip, depth):
    learner = MaPLe(clip, depth=depth)
    ctx, deep = learner.prompt_learner.ctx, list(learner.prompt_learner.compound_prompts_text)
    for vectors in deep:
        vectors.data.mul_(50)
    tokens = learner.prepare(NAMES).tokens
    found = []
    for method in ("shared_prefix", "plain"):
        encoded = TextEncoder(clip, method)(tokens, ctx, deep_ctx=deep)
        gradients = torch.autograd.grad(encoded.square().sum(), [ctx, *deep])
        found.append((encoded.detach(), *gradients))
    for fast, plain in zip(*found, strict=True):
        assert_close(fast, plain, atol=2e-4, rtol=1e-3)


def test_maple_starts_random_where_the_words_do_not_suffice(clip, caplog):
    learner = MaPLe(clip, n_ctx=5, depth=1)
    assert "N_CTX is 5 but CTX_INIT 'a photo of a' has fewer words" in caplog.text
    assert learner.prepare(["owl"]).tokens.tokens.shape[1] == 1 + 5 + 2 + 1
    assert learner.prompt_learner.ctx.std() < 0.03


def test_lasp_is_the_mean_of_its_groups_and_near_texts_cost_less(clip):
    learner = LASP(clip, groups=2, templates="imagenet_select_7", text_weight=1.0)
    classes = learner.prepare(NAMES)
    groups = learner.group_features(classes)
    assert len(groups) == 2
    assert_close(learner.class_features(classes), (groups[0] + groups[1]) / 2)
    _, extra = learner.training_step(features(), classes)
    assert_close(extra, learner.text_loss(groups, classes))
    near = learner.text_loss([classes.features[0], classes.features[1]], classes)
    far = learner.text_loss([-classes.features[0], -classes.features[1]], classes)
    assert near < far


def test_a_file_gives_the_learner_back(clip, tmp_path):
    learner = make("MaPLe", clip)
    towers = {"text_tower": clip.text_fingerprint, "image_tower": clip.image_fingerprint}
    metadata = {"trainer": "MaPLe", "arguments": {"depth": 2}, **towers}
    save_learner(tmp_path / "m.pth", dict(learner.named_parameters()), metadata, epoch=2)
    assert torch.load(tmp_path / "m.pth", weights_only=True)["epoch"] == 2
    again = load_learner(tmp_path / "m.pth", clip)
    for name, value in learner.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with pytest.raises(InputError, match="whose weights differ from those of"):
        load_learner(tmp_path / "m.pth", clip_from_config(CONFIG, seed=5))


def test_published_checkpoints_load_with_what_they_hold_besides(clip, tmp_path):
    source, target = CoCoOp(clip, words="", seed=1), CoCoOp(clip, words="", seed=2)
    state = {key.removeprefix("prompt_learner."): value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state | {"token_prefix": torch.zeros(8, 1, 16)}, "epoch": 10}, tmp_path / "c.pth")
    load_published(target, tmp_path / "c.pth")
    assert all(torch.equal(target.state_dict()[key], value) for key, value in source.state_dict().items())


def test_what_does_not_fit_is_named(clip, tmp_path):
    resnet = clip_from_config(CONFIG | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}})
    torch.save({"state_dict": {"ctx": torch.zeros(4, 16)}}, tmp_path / "other.pth")
    torch.save({"weights": 1}, tmp_path / "no.pth")
    for call, message in (
        (lambda: VPT(clip, depth=3), "prompts of depth 3 .*has 2 layers; set the prompt depth to 1..2"),
        (lambda: VPT(resnet), "has no vision transformer with a class token"),
        (lambda: LASP(clip, groups=99), "GROUPS is 99 but imagenet80 has 80 templates"),
        (lambda: VPT(clip, n_ctx=0, depth=1), "at least 1 vector, got 0"),
        (lambda: LinearProbe(clip, 3).prepare(NAMES), "trained on 3 classes, so it cannot tell 8 others apart"),
        (lambda: load_learner(tmp_path / "none.pth", clip), "no file .*none.pth"),
        (lambda: load_learner(tmp_path / "no.pth", clip), "holds no 'state_dict'"),
        (lambda: load_learner(tmp_path / "other.pth", clip), "does not say which baseline it holds"),
        (lambda: load_published(make("VPT", clip), tmp_path / "other.pth"), "has no image_encoder.VPT of shape"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_deep_contexts_that_do_not_fit_are_named(clip):
    tokens, ctx = tokenize_prompts(NAMES, clip.tokenizer, 2), torch.zeros(2, 16)
    with pytest.raises(InputError, match="3 layers of prompts .*set the prompt depth to at most 2"):
        TextEncoder(clip)(tokens, ctx, deep_ctx=[ctx, ctx])
    with pytest.raises(InputError, match=r"one context of shape \(2, 16\) per layer"):
        TextEncoder(clip)(tokens, ctx, deep_ctx=[torch.zeros(3, 16)])
