import os
import subprocess
from collections import OrderedDict

import numpy as np
import open_clip
import pytest
import torch
from torch.testing import assert_close

from prompt_pretrain.clip import clip_from_config
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt, load_prompt, prompt_hash, save_prompt

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def ctx() -> torch.Tensor:
    return torch.arange(4 * 16).reshape(4, 16) / 8.0


def test_random_prompt_depends_on_its_seed_alone():
    first = SoftPrompt.random(64, 512, seed=1)
    torch.manual_seed(9)
    assert torch.equal(first.ctx, SoftPrompt.random(64, 512, seed=1).ctx)
    assert not torch.equal(first.ctx, SoftPrompt.random(64, 512, seed=2).ctx)
    assert first.ctx.std().item() == pytest.approx(0.02, rel=0.02) and abs(first.ctx.mean().item()) < 1e-3
    assert (first.n_ctx, first.width, first.class_specific, first.num_classes) == (64, 512, False, None)
    specific = SoftPrompt.random(4, 8, num_classes=5)
    assert (specific.n_ctx, specific.width, specific.class_specific, specific.num_classes) == (4, 8, True, 5)
    assert specific.ctx.requires_grad and specific.ctx.is_leaf


def test_words_give_their_token_embeddings():
    clip = clip_from_config(TINY)
    table = clip.model.token_embedding.weight
    encode = open_clip.SimpleTokenizer().encode
    prompt = SoftPrompt.from_words("a_photo of a", clip)
    assert_close(prompt.ctx.data, table[encode("a photo of a")])
    # M counts words, tokens of the last words fall out
    long = SoftPrompt.from_words("photorealistic dog", clip, num_classes=3)
    assert long.ctx.shape == (3, 2, 16)
    assert_close(long.ctx[2].data, table[encode("photorealistic dog")[:2]])
    with pytest.raises(InputError, match="CTX_INIT holds no words"):
        SoftPrompt.from_words(" _ ", clip)


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize("num_classes", [None, 5])
def test_own_files_come_back_whole(tmp_path, suffix, num_classes):
    prompt = SoftPrompt.random(4, 16, num_classes=num_classes, position="middle")
    prompt.metadata = {"clip_id": "ViT-B-16-quickgelu/openai", "K": 1000, "margin": "log10"}
    path = tmp_path / f"prompt{suffix}"
    save_prompt(path, prompt, epoch=5)
    loaded = load_prompt(path, width=16, n_ctx=4)
    assert torch.equal(loaded.ctx, prompt.ctx) and loaded.position == "middle"
    assert loaded.metadata["clip_id"] == "ViT-B-16-quickgelu/openai" and str(loaded.metadata["K"]) == "1000"
    assert prompt_hash(loaded) == prompt_hash(prompt)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_own_files_serve_the_published_consumers(tmp_path, ctx):
    path = tmp_path / "model.pth.tar-5"
    save_prompt(path, SoftPrompt(ctx), epoch=5, extra={"val_result": 24.9})
    content = torch.load(path, weights_only=True)
    assert torch.equal(content["state_dict"]["ctx"], ctx)  # Detic's dump
    assert [key for key in content["state_dict"] if "ctx" in key] == ["ctx"]  # ZSSeg
    assert (content["epoch"], content["val_result"]) == (5, 24.9)
    assert content["metadata"] == {"position": "end", "n_ctx": 4, "format_version": 1}


def test_extras_that_would_not_load_are_never_written(tmp_path, ctx):
    with pytest.raises(Exception, match="weights_only|Weights only"):
        save_prompt(tmp_path / "p.pth", SoftPrompt(ctx), extra={"result": subprocess.Popen})
    assert not list(tmp_path.iterdir())


def token_buffers() -> dict[str, torch.Tensor]:
    names = ("train_token_prefix", "train_token_suffix", "test_token_prefix", "token_prefix", "token_suffix")
    return {name: torch.zeros(7, 3, 16) for name in names}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda ctx: {"state_dict": OrderedDict(ctx=ctx), "epoch": 5, "val_result": None},
        lambda ctx: {"state_dict": {"ctx": ctx} | token_buffers()},
        lambda ctx: {"state_dict": {f"module.{k}": v for k, v in ({"ctx": ctx} | token_buffers()).items()}},
        lambda ctx: {f"prompt_learner.{k}": v for k, v in ({"ctx": ctx} | token_buffers()).items()},
        lambda ctx: {"ctx": ctx},
        lambda ctx: {"ctx": torch.nn.Parameter(ctx)},
        lambda ctx: ctx,
        lambda ctx: ctx.half(),
        lambda ctx: {"state_dict": {"ctx": ctx.half()}},
    ],
)
def test_every_published_form_loads(tmp_path, ctx, wrap):
    torch.save(wrap(ctx), tmp_path / "prompt.pth.tar")
    prompt = load_prompt(tmp_path / "prompt.pth.tar", width=16)
    assert_close(prompt.ctx.data, ctx)
    assert prompt.ctx.dtype == torch.float32 and prompt.position == "end" and prompt.metadata == {}


def test_array_files_load(tmp_path, ctx):
    np.save(tmp_path / "ctx.npy", ctx.numpy().astype(np.float16))
    assert_close(load_prompt(tmp_path / "ctx.npy").ctx.data, ctx)
    save_prompt(tmp_path / "own.npy", SoftPrompt(ctx))
    assert_close(torch.from_numpy(np.load(tmp_path / "own.npy")), ctx)


def test_whole_training_checkpoint_loads_without_building_its_objects(tmp_path, ctx):
    parameter = torch.nn.Parameter(ctx)
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    content = {
        "state_dict": {"ctx": ctx.clone()} | token_buffers(),
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": scheduler, "last_epoch": 3},
        "val_result": np.float64(25.2),
    }
    path = tmp_path / "model.pth.tar-3"
    torch.save(content, path)
    with pytest.raises(Exception, match="[Ww]eights"):
        torch.load(path, weights_only=True)
    assert_close(load_prompt(path, width=16, n_ctx=4).ctx.data, ctx)


class Payload:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, subprocess.check_output, exec])
def test_payloads_are_refused_and_never_run(tmp_path, ctx, function):
    marker = tmp_path / "owned"
    code = f"open({str(marker)!r}, 'w')" if function in (eval, exec) else f"touch {marker}"
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"ctx": ctx}, "x": Payload(function, code)}, path)
    with pytest.raises(
        InputError, match=r"evil.pth wants to call \w+\.\w+, .* may be malicious. Nothing of it was run"
    ):
        load_prompt(path)
    assert_close(load_prompt(path, allow_suspicious=True).ctx.data, ctx)
    np.save(tmp_path / "evil.npy", np.array([Payload(function, code)], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="no readable .npy array"):
        load_prompt(tmp_path / "evil.npy")
    assert not marker.exists()


def test_unusable_content_is_explained(tmp_path, ctx):
    def saved(content) -> str:
        torch.save(content, tmp_path / "prompt.pth")
        return str(tmp_path / "prompt.pth")

    with pytest.raises(InputError, match="no prompt file .*missing.pth"):
        load_prompt(tmp_path / "missing.pth")
    with pytest.raises(
        InputError,
        match=r"no 'ctx' of shape \(16, 16\) in .*prompt.pth, found \(4, 16\); set .*PROMPT_SHAPE\) to 4, .*random",
    ):
        load_prompt(saved({"ctx": ctx}), n_ctx=16, width=16)
    with pytest.raises(InputError, match=r"no 'ctx' of shape \(M, 512\) in .*, found \(4, 16\); .* text width 16"):
        load_prompt(saved(ctx), width=512)
    with pytest.raises(InputError, match=r"no 'ctx' of shape \(M, W\) in .*, found w \(2,\); .* would stay random"):
        load_prompt(saved({"state_dict": {"w": torch.zeros(2)}}))
    with pytest.raises(InputError, match="found no tensors"):
        load_prompt(saved({"state_dict": {}}))
    with pytest.raises(InputError, match="found list"):
        load_prompt(saved([1]))
    with pytest.raises(InputError, match=r"found a.ctx \(4, 16\), b.ctx \(4, 16\); give a file with a single prompt"):
        load_prompt(saved({"a.ctx": ctx, "b.ctx": ctx}))
    with pytest.raises(InputError, match=r"found \(64,\) of torch.float32; expected floating-point \(M, W\)"):
        load_prompt(saved({"ctx": ctx.flatten()}))
    with pytest.raises(InputError, match=r"found \(4, 16\) of torch.int64"):
        load_prompt(saved({"ctx": ctx.long()}))
    broken = ctx.clone()
    broken[1, 2] = torch.nan
    with pytest.raises(InputError, match="holds 1 context values that are not finite"):
        load_prompt(saved({"ctx": broken}))
    with pytest.raises(InputError, match="says class-name position 'behind'; expected one of end, middle, front"):
        load_prompt(saved({"ctx": ctx, "metadata": {"position": "behind"}}))


def test_damaged_files_are_explained(tmp_path, ctx):
    torch.save({"ctx": ctx}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    for length in (0, 10, 600, len(content) - 5):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        with pytest.raises(InputError, match="cut.pth (is no torch file or is cut short|is damaged)"):
            load_prompt(tmp_path / "cut.pth")
    for name in ("cut.npy", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"\x93NUMPY")
        with pytest.raises(InputError, match=f"{name} is no"):
            load_prompt(tmp_path / name)


def test_constructor_explains_bad_arguments(ctx):
    with pytest.raises(InputError, match=r"shape \(M, W\) or \(N, M, W\), got \(3,\)"):
        SoftPrompt(torch.zeros(3))
    with pytest.raises(InputError, match="unknown class-name position 'back'"):
        SoftPrompt(ctx, "back")
    with pytest.raises(InputError, match="at least 1 context vector"):
        SoftPrompt.random(0, 8)


def test_hash_tells_prompts_apart(ctx):
    one = SoftPrompt(ctx)
    assert prompt_hash(one) == prompt_hash(SoftPrompt(ctx, metadata={"seed": 1}))
    assert prompt_hash(one) != prompt_hash(SoftPrompt(ctx, "front"))
    assert prompt_hash(one) != prompt_hash(SoftPrompt(ctx + 1e-6))
    assert prompt_hash(one) != prompt_hash(SoftPrompt(ctx.reshape(2, 32)))
