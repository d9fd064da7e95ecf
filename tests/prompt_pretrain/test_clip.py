import copy
import json
import logging
import os
import pickle
import zipfile

import open_clip
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from prompt_pretrain.clip import Clip, clip_from_config, fetch_clip, load_clip, save_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld import TINY_CLIP, TINY_CLIP_NAME

VIT = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3},
}
TWO_HEADS = VIT | {"text_cfg": VIT["text_cfg"] | {"heads": 2}}
RESNET = VIT | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 64, "patch_size": None}}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clip_from_config(VIT, seed=3)


@pytest.fixture(scope="module")
def texts(clip) -> torch.Tensor:
    return clip.tokenizer(["a photo of a dog.", "sea lion"])


def random_images(clip: Clip) -> torch.Tensor:
    return torch.randn(2, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))


def assert_same_towers(a: Clip, b: Clip, texts) -> None:
    images = random_images(a)
    assert_close(a.encode_image(images), b.encode_image(images))
    assert_close(a.model.encode_text(texts), b.model.encode_text(texts))


def test_attributes_describe_the_model(clip):
    assert (clip.image_size, clip.text_width, clip.embed_dim, clip.context_length) == (32, 64, 48, 77)
    assert clip.logit_scale == pytest.approx(1 / 0.07)
    assert clip.mean == open_clip.OPENAI_DATASET_MEAN and clip.std == open_clip.OPENAI_DATASET_STD
    assert (clip.device.type, clip.dtype) == ("cpu", torch.float32)
    assert clip.tokenizer.eot_token_id == 49407


def test_siglip_has_right_attributes_without_its_tokenizer():
    config = {
        "embed_dim": 32,
        "init_logit_bias": -10.0,
        "custom_text": True,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "pool_type": "avg"},
        "text_cfg": {
            "context_length": 64, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1,
            "no_causal_mask": True, "pool_type": "last", "proj_bias": True,
        },
    }  # fmt: skip

    def missing():
        raise ImportError("No module named 'transformers'")

    model = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"})
    siglip = Clip(model, clip_id="siglip/test", make_tokenizer=missing)
    assert (siglip.text_width, siglip.embed_dim, siglip.context_length) == (64, 32, 64)
    with pytest.raises(InputError, match="tokenizer of siglip/test is not available .*install transformers"):
        _ = siglip.tokenizer
    assert clip_from_config(config).embed_dim == 32


def test_towers_are_frozen_whatever_is_called():
    clip = clip_from_config(RESNET)
    assert not any(p.requires_grad for p in clip.model.parameters())
    owner = nn.Sequential(clip.model)
    owner.train()
    clip.model.visual.train()
    pickle.loads(pickle.dumps(clip.model)).train()
    twin = copy.deepcopy(clip.model).train()
    assert owner.training and not any(m.training for m in [*clip.model.modules(), *twin.modules()])
    before = clip.model.visual.bn1.running_mean.clone()
    clip.encode_image(random_images(clip))
    assert_close(clip.model.visual.bn1.running_mean, before)


def test_image_features_need_no_gradient_and_follow_the_precision(clip):
    features = clip.encode_image(random_images(clip))
    assert not features.requires_grad
    assert_close(features, clip.model.visual(random_images(clip)))
    half = clip_from_config(VIT, seed=3, precision="bf16")
    assert half.dtype == half.encode_image(random_images(clip)).dtype == torch.bfloat16
    assert half.model.ln_final.weight.dtype == torch.float32
    assert_close(half.encode_image(random_images(clip)).float(), features, rtol=0.1, atol=0.1)
    assert clip_from_config(VIT, precision="amp").dtype == torch.float32


def test_fingerprints_tell_towers_apart(clip):
    again = clip_from_config(VIT, seed=3)
    assert (again.text_fingerprint, again.image_fingerprint) == (clip.text_fingerprint, clip.image_fingerprint)
    other = clip_from_config(TWO_HEADS, seed=3)  # same weights, other features
    assert other.text_fingerprint != clip.text_fingerprint
    assert other.image_fingerprint == clip.image_fingerprint
    changed = copy.deepcopy(clip.model)
    with torch.no_grad():
        changed.visual.proj[0, 0] += 1
    changed_clip = Clip(changed, clip_id="x")
    assert changed_clip.image_fingerprint != clip.image_fingerprint
    assert changed_clip.text_fingerprint == clip.text_fingerprint


def test_json_config_gives_the_same_random_weights_every_time(tmp_path, clip):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(VIT))
    state = torch.random.get_rng_state()
    first, second = load_clip(path), load_clip(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.text_fingerprint == second.text_fingerprint
    assert first.clip_id == second.clip_id and first.clip_id.startswith("file:tiny#")
    torch.save(clip.model.state_dict(), tmp_path / "w.pt")
    assert load_clip(path, weights=tmp_path / "w.pt").text_fingerprint == clip.text_fingerprint


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_state_dict_files_load(tmp_path, clip, texts, wrap, caplog):
    path = tmp_path / "weights.pt"
    torch.save(wrap(clip.model.state_dict()), path)
    with caplog.at_level(logging.WARNING):
        loaded = load_clip(path)
    assert "does not tell its activation" in caplog.text
    assert_same_towers(loaded, clip, texts)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("config", [VIT, RESNET])
def test_openai_archive_loads_without_running_it(tmp_path, texts, config, monkeypatch, caplog):
    source = clip_from_config(config, seed=5)
    traced = torch.jit.trace_module(
        source.model,
        {"encode_image": random_images(source), "encode_text": texts, "forward": (random_images(source), texts)},
        check_trace=False,
    )
    traced.save(str(tmp_path / "ViT.pt"))
    monkeypatch.setattr(torch.jit, "load", None)
    loaded = load_clip(tmp_path / "ViT.pt")
    assert_same_towers(loaded, source, texts)
    assert loaded.clip_id.startswith("file:ViT#") and len(loaded.clip_id) == len("file:ViT#") + 12
    assert not caplog.text  # OpenAI's archives need no guess
    with pytest.raises(InputError, match="OpenAI's weights, which need QuickGELU; name ViT-B-16-quickgelu"):
        load_clip("ViT-B-16", weights=tmp_path / "ViT.pt")


def test_config_beside_the_weights_wins_over_shapes(tmp_path, texts):
    source = clip_from_config(TWO_HEADS)
    torch.save(source.model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TWO_HEADS}))
    assert_same_towers(load_clip(tmp_path / "open_clip_pytorch_model.bin"), source, texts)


def test_tiny_file_keeps_the_rows_of_used_tokens(tmp_path, clip, texts):
    source = clip_from_config(TWO_HEADS, seed=1)
    path = tmp_path / "tiny.safetensors"
    used = texts.unique().tolist()
    save_clip(path, source.model, TWO_HEADS, token_rows=used)
    assert path.stat().st_size < 1_500_000 < 49408 * 64 * 4
    loaded = load_clip(path)
    assert_same_towers(loaded, source, texts)
    table = loaded.model.token_embedding.weight
    rest = torch.ones(len(table), dtype=torch.bool)
    rest[used] = False
    assert table[rest].std().item() == pytest.approx(0.02, rel=1e-2)
    assert load_clip(path).text_fingerprint == loaded.text_fingerprint
    save_clip(path, source.model, TWO_HEADS, token_rows=used, dtype=torch.float16)
    assert_close(load_clip(path).model.ln_final.weight, source.model.ln_final.weight)


def test_inferred_architecture_of_the_published_sizes():
    from prompt_pretrain.clip_files import infer_config

    for name in ("ViT-B-16-quickgelu", "RN50-quickgelu", "ViT-L-14-quickgelu", "ViT-H-14-quickgelu"):
        config = open_clip.get_model_config(name)
        with torch.device("meta"):
            state = open_clip.CLIP(**config).state_dict()
        found = infer_config(state, name, quick_gelu=True)
        assert found["embed_dim"] == config["embed_dim"] and found["quick_gelu"]
        assert found["text_cfg"] == {"context_length": 77, "vocab_size": 49408} | config["text_cfg"]
        expected = {"head_width": 64} | config["vision_cfg"]
        assert {key: found["vision_cfg"].get(key, 64) for key in expected} == expected


def test_openai_tag_gets_quickgelu(monkeypatch, tmp_path):
    tiny = copy.deepcopy(VIT)
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: tiny | {"quick_gelu": name.endswith("quickgelu")})
    monkeypatch.setattr(open_clip.factory, "get_model_config", lambda name: copy.deepcopy(tiny))
    file = tmp_path / "weights.pt"
    source = clip_from_config(VIT, seed=8)
    torch.save(source.model.state_dict(), file)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: str(file))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ViT-B/16", "ViT-B-16/openai", "ViT-B-16-quickgelu/openai", "ViT-B/16/openai"):
        clip = load_clip(name)
        assert clip.clip_id == "ViT-B-16-quickgelu/openai"
        assert clip.text_fingerprint == source.text_fingerprint


def test_offline_error_says_where_the_file_goes(monkeypatch, tmp_path):
    def offline(cfg):
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = r"ViT-B/16 could not be downloaded \(no network\); put ViT-B-16.pt .* into .*/.cache/clip"
    with pytest.raises(InputError, match=expected):
        load_clip("ViT-B/16")
    cached = tmp_path / ".cache" / "clip" / "ViT-B-16.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    with pytest.raises(InputError, match=r"ViT-B-16.pt is damaged \(its checksum"):
        load_clip("ViT-B/16")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B/17", "unknown CLIP 'ViT-B/17': .*nearest names: .*ViT-B"),
        ("ViT-B-16", "lacks the tag of its weights; give NAME/TAG, nearest: ViT-B-16/openai"),
        ("ViT-B-16/opnai", "no weights tagged 'opnai'.*nearest: ViT-B-16-?.*/openai"),
        ("ViT-B-32/laion400m_e31", "wrong activation; its weights belong to ViT-B-32-quickgelu/laion400m_e31"),
        ("missing/clip.pt", "no CLIP weight file missing/clip.pt"),
        ("missing.json", "no CLIP config missing.json"),
    ],
)
def test_unusable_names_are_explained(name, message):
    with pytest.raises(InputError, match=message):
        load_clip(name)


def test_unknown_precision_is_explained():
    with pytest.raises(InputError, match="unknown precision 'fp8'; choose one of fp32, bf16, fp16, amp"):
        load_clip("ViT-B/16", precision="fp8")


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_malicious_files_are_refused_and_never_run(tmp_path, clip):
    marker = tmp_path / "owned"
    torch.save({"state_dict": clip.model.state_dict(), "x": Payload(marker)}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="evil.pt does not load as plain weights"):
        load_clip(tmp_path / "evil.pt")
    with zipfile.ZipFile(tmp_path / "jit.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Payload(marker), protocol=2))
        archive.writestr("a/constants.pkl", b"")
    with pytest.raises(InputError, match="wants to call posix.system, which weights never need"):
        load_clip(tmp_path / "jit.pt")
    assert not marker.exists()


def test_damaged_and_foreign_files_are_explained(tmp_path, clip):
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match="text.pt does not load as plain weights"):
        load_clip(tmp_path / "text.pt")
    (tmp_path / "short.safetensors").write_bytes(b"\x10\0\0")
    with pytest.raises(InputError, match="short.safetensors is no safetensors file or is cut short"):
        load_clip(tmp_path / "short.safetensors")
    torch.save(clip.model.state_dict(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:100_000])
    with pytest.raises(InputError, match="cut.pt does not load as plain weights"):
        load_clip(tmp_path / "cut.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="other.pt is no CLIP of OpenAI's layout: positional_embedding is missing"):
        load_clip(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds no state dict; expected names with tensors, got list"):
        load_clip(tmp_path / "list.pt")
    state = clip.model.state_dict() | {"extra": torch.zeros(1)}
    torch.save(state, tmp_path / "extra.pt")
    with pytest.raises(InputError, match="extra.pt does not fit this CLIP: extra is unexpected"):
        load_clip(tmp_path / "extra.pt")
    state = dict(clip.model.state_dict()) | {"ln_final.weight": torch.full((64,), torch.nan)}
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(InputError, match="values that are not finite in ln_final.weight"):
        load_clip(tmp_path / "nan.pt")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="bad.json is no valid JSON"):
        load_clip(tmp_path / "bad.json")
    (tmp_path / "lacks.json").write_text('{"embed_dim": 3}')
    with pytest.raises(InputError, match="lacks some of embed_dim, vision_cfg, text_cfg"):
        load_clip(tmp_path / "lacks.json")
    (tmp_path / "odd.json").write_text(json.dumps(VIT | {"colour": 1}))
    with pytest.raises(InputError, match="open_clip cannot build the CLIP config of .*colour"):
        load_clip(tmp_path / "odd.json")


def test_files_can_be_asked_for_without_being_read(tmp_path):
    assert fetch_clip(TINY_CLIP_NAME) == TINY_CLIP
    (tmp_path / "clip.pt").write_text("not read")
    assert fetch_clip(tmp_path / "clip.pt") == tmp_path / "clip.pt"
    with pytest.raises(InputError, match=r"no CLIP file none\.pt"):
        fetch_clip("none.pt")
    with pytest.raises(InputError, match="unknown CLIP 'ViT-B/61'"):
        fetch_clip("ViT-B/61")
