"""Text features that are kept, and crops that CLIP classifies."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from segmentation.clip_adapter import ClipAdapter, MaskFormerClipAdapter
from segmentation.prompt_learners import PompPrompt, PredefinedPrompts
from tests.segmentation.tiny_models import EMBED_DIM, WIDTH, blob_masks, noise_image, tiny_clip

NAMES = ["sand", "red star", "blue disc"]


class Counting(PredefinedPrompts):
    def __init__(self) -> None:
        super().__init__(["a {}."])
        self.encoded: list[list[str]] = []

    def encode(self, clip: Clip, class_names: Sequence[str]) -> Tensor:
        self.encoded.append(list(class_names))
        return super().encode(clip, class_names)


class CountingPomp(PompPrompt):
    def encode(self, clip: Clip, class_names: Sequence[str]) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().encode(clip, class_names)


def mask_adapter(**options: object) -> MaskFormerClipAdapter:
    torch.manual_seed(0)
    return MaskFormerClipAdapter(tiny_clip(), PredefinedPrompts(["a {}."]), **{"region_size": 0, **options})


def test_only_new_names_are_encoded() -> None:
    learner = Counting()
    adapter = ClipAdapter(tiny_clip(), learner)
    first = adapter.text_features([" sand", "red star"])
    second = adapter.text_features(["blue disc", "sand", "sand"])
    assert learner.encoded == [["sand", "red star"], ["blue disc"]]
    assert torch.equal(second[1], first[0]) and torch.equal(second[2], first[0])
    assert adapter.text_features(["blue disc", "sand", "sand"]) is second
    assert not {key for key in adapter.state_dict() if "feature" in key}


def test_loading_weights_drops_features() -> None:
    learner = Counting()
    adapter = nn.Sequential(ClipAdapter(tiny_clip(), learner))
    before = adapter[0].text_features(NAMES)
    state = {name: value.clone() for name, value in adapter.state_dict().items()}
    state["0.clip_model.text_projection"] *= -1
    adapter.load_state_dict(state)
    assert_close(adapter[0].text_features(NAMES), -before)
    assert len(learner.encoded) == 2


def test_a_trained_prompt_is_encoded_at_every_training_step_and_once_per_evaluation() -> None:
    learner = CountingPomp(WIDTH, 2)
    adapter = ClipAdapter(tiny_clip(), learner)
    for _ in range(2):
        assert adapter.text_features(NAMES).requires_grad
    assert learner.calls == 2
    with torch.no_grad():
        first = adapter.text_features(NAMES)
        assert adapter.text_features(NAMES) is first
        assert learner.calls == 3
        learner.ctx.data.mul_(2)  # what an optimiser step may do
        assert not torch.allclose(adapter.text_features(NAMES), first)
    learner.requires_grad_(False)  # a frozen one needs no gradients to be off
    adapter.text_features(NAMES)
    assert learner.calls == 4


def test_features_kept_in_inference_mode_serve_training() -> None:
    adapter = mask_adapter()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        kept = adapter.text_features(NAMES)
    assert kept.dtype == torch.float32
    query = torch.randn(2, EMBED_DIM, requires_grad=True)
    adapter.query_logits(query, adapter.class_features(NAMES)).sum().backward()
    assert query.grad is not None and adapter.non_object_embedding.grad is not None
    assert_close(kept, PredefinedPrompts(["a {}."]).encode(adapter.clip, NAMES), rtol=1e-4, atol=1e-5)


def test_given_features_come_first_whatever_is_loaded() -> None:
    adapter = ClipAdapter(tiny_clip(), PompPrompt(WIDTH, 2))
    own = adapter.text_features(NAMES).detach()
    given = torch.randn(2, EMBED_DIM)
    adapter.set_text_features(["sand ", "blue disc"], given)
    adapter.load_state_dict(adapter.state_dict())
    with torch.no_grad():
        found = adapter.text_features(NAMES)
    assert_close(found[[0, 2]], given / given.norm(dim=1, keepdim=True))
    assert_close(found[1], own[1])
    adapter.forget_text_features()
    with torch.no_grad():
        assert_close(adapter.text_features(NAMES), own)
    with pytest.raises(InputError, match=rf"features of 1 classes have shape \(1, 3\).*needs \(1, {EMBED_DIM}\)"):
        adapter.set_text_features(["sand"], torch.zeros(1, 3))


def test_query_logits_are_cosines_with_no_object_last() -> None:
    adapter = mask_adapter()
    classes = adapter.class_features(NAMES)
    assert_close(classes.norm(dim=1), torch.ones(4))
    assert_close(adapter.query_logits(3 * classes[1], classes)[1], torch.tensor(100.0))
    assert_close(
        adapter.query_logits(-adapter.non_object_embedding, classes)[0, -1], torch.tensor(-100.0), check_stride=False
    )


def test_logits_are_a_hundred_times_the_cosine_or_as_the_clip_has_it() -> None:
    published, own = mask_adapter(), mask_adapter(logit_scale=0)
    own.load_state_dict(published.state_dict())
    queries = torch.randn(5, published.embed_dim)
    features = published.class_features(NAMES)
    ratio = published.clip.logit_scale / 100
    assert ratio != 1
    assert_close(own.query_logits(queries, features), published.query_logits(queries, features) * ratio)
    pixels, masks = torch.rand(3, 20, 20) * 255, torch.ones(1, 20, 20)
    assert_close(own(pixels, NAMES, masks)[0], published(pixels, NAMES, masks)[0] * ratio, rtol=1e-4, atol=1e-4)


def test_images_classified_together_are_as_alone() -> None:
    adapter = mask_adapter()
    images = [noise_image(40, 60).float(), noise_image(33, 20, seed=1).float(), noise_image(8, 8).float()]
    masks = [blob_masks(40, 60, 4), blob_masks(33, 20, 2, seed=1), torch.zeros(3, 8, 8)]
    masks[0][1] = 0.5  # not above the threshold
    logits, valid = adapter.classify(images, NAMES, masks)
    assert valid[0].tolist() == [True, False, True, True] and not valid[2].any()
    assert logits[2] is None
    for index in range(2):
        alone, which = adapter(images[index], NAMES, masks[index])
        assert torch.equal(which, valid[index])
        assert_close(alone, logits[index], rtol=1e-4, atol=1e-3)
        assert alone.shape == (int(which.sum()), 4)


def test_masks_all_empty_give_no_features() -> None:
    adapter = mask_adapter()
    logits, valid = adapter.classify(
        [noise_image(9, 9).float()] * 2, NAMES, [torch.zeros(2, 9, 9), torch.zeros(0, 9, 9)]
    )
    assert logits == [None, None]
    assert [which.tolist() for which in valid] == [[False, False], []]


def test_the_fill_is_what_clip_sees_outside() -> None:
    image, mask = noise_image(20, 20).float(), torch.zeros(1, 20, 20)
    mask[0, 3, 4] = mask[0, 15, 12] = 0.7
    for fill, value in (("mean", 0.0), ("zero", None)):
        adapter = mask_adapter(mask_fill=fill, region_resized=False)
        (crop,), _ = adapter.regions(image, mask)
        assert crop.shape == (3, 13, 9)
        outside = crop[:, 5, 5]
        pixels = outside * adapter.pixel_std.flatten() + adapter.pixel_mean.flatten()
        assert_close(outside if value is not None else pixels, torch.zeros(3), atol=1e-5, rtol=0)
        assert_close(crop[:, 0, 0], ((image - adapter.pixel_mean) / adapter.pixel_std)[0, :, 3, 4])
    adapter = mask_adapter(mask_matting=True, region_resized=False)
    (crop,), _ = adapter.regions(image, mask)
    assert_close(crop[:, 0, 0], 0.7 * ((image - adapter.pixel_mean) / adapter.pixel_std)[0, :, 3, 4])


def test_copies_have_a_clip_of_their_own() -> None:
    adapter = mask_adapter()
    before = adapter.text_features(NAMES)
    other = copy.deepcopy(adapter)
    assert other.clip.model is other.clip_model and other.clip_model is not adapter.clip_model
    with torch.no_grad():
        other.clip_model.text_projection.mul_(-1)
    other.load_state_dict(other.state_dict())
    assert_close(other.text_features(NAMES), -before)
    assert_close(adapter.text_features(NAMES), before)


def test_clip_stays_frozen_and_in_evaluation() -> None:
    adapter = mask_adapter().train()
    assert [name for name, parameter in adapter.named_parameters() if parameter.requires_grad] == [
        "non_object_embedding"
    ]
    assert not any(module.training for module in adapter.clip_model.modules())


def test_errors() -> None:
    with pytest.raises(InputError, match="MASK_FILL is 'grey'; expected one of mean, zero"):
        mask_adapter(mask_fill="grey")
    with pytest.raises(InputError, match="MASK_EXPAND_RATIO is 0; it must be greater than 0"):
        mask_adapter(mask_expand_ratio=0)
    with pytest.raises(InputError, match="REGION_SIZE is -1; expected pixels"):
        mask_adapter(region_size=-1)
    with pytest.raises(InputError, match="REGION_PRECISION is 'fp8'; expected one of fp32, bf16"):
        mask_adapter(region_precision="fp8")
    with pytest.raises(InputError, match="LOGIT_SCALE is -1; expected more than 0, or 0.0 for"):
        mask_adapter(logit_scale=-1)
    adapter = mask_adapter(region_resized=False)
    mask = torch.zeros(1, 20, 20)
    mask[0, 4, 4] = 1
    with pytest.raises(InputError, match="1 x 1 pixels is smaller than a patch"):
        adapter(noise_image(20, 20).float(), NAMES, mask)
