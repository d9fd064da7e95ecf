"""Label maps against those of whole score maps."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import segmentation  # noqa: F401  (makes detectron2 importable)
from detectron2.modeling import build_model
from prompt_pretrain.errors import InputError
from segmentation import label_inference
from segmentation.evaluation import GeneralizedSemSegEvaluator
from segmentation.label_inference import LabelSearch, PixelWeights, label_map
from segmentation.setup import load_config
from segmentation.zero_shot_inference import semantic_map
from tests.segmentation.tiny_runs import CLASS_NAMES, TEST, registered, write_config

SEEN = torch.tensor([1.0, 1, 0, 1, 0, 0])


def make(seed: int, *, queries: int = 12, confident: float = 12.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query logits (Q, K + 1), of which a third are for a class, masks (Q, 18, 26), CLIP's logits of valid masks."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(queries, len(SEEN) + 1, generator=generator)
    logits[:, -1] += confident
    for query in range(0, queries, 3):
        logits[query, int(torch.randint(len(SEEN), (1,), generator=generator))] += 1.5 * confident
    coarse = torch.randn(1, queries, 4, 5, generator=generator) * 6
    masks = F.interpolate(coarse, (18, 26), mode="bilinear")[0].sigmoid()
    masks[1] *= 0.3  # empty
    valid = masks.flatten(1).amax(1) > 0.5
    clip_logits = 3 * torch.randn(int(valid.sum()), len(SEEN) + 1, generator=generator)
    return logits, masks, valid, clip_logits


@pytest.mark.parametrize("size", [(18, 26), (30, 31), (9, 52), (1, 1)])
def test_weights_are_masks_resized_as_score_maps_are(size: tuple[int, int]) -> None:
    masks = make(0)[1]
    expected = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0].flatten(1).T
    weights = PixelWeights(masks, size)
    assert_close(weights.of(torch.arange(len(weights))), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(18, 26), (40, 33)])
def test_chunks_give_the_labels_of_whole_maps(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    logits, masks, _, _ = make(1)
    scores = logits.softmax(-1)[:, :-1]
    whole = F.interpolate(torch.einsum("qc,qhw->chw", scores, masks)[None], size, mode="bilinear")[0]
    monkeypatch.setattr(label_inference, "_SCORES_PER_CHUNK", 100)
    assert torch.equal(label_map(scores, PixelWeights(masks, size)), whole.argmax(0).flatten())


def test_leaving_out_classes_changes_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = make(4)[1]
    scores = torch.randn(len(masks), 300, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    expected = torch.einsum("qc,qhw->chw", scores, masks).argmax(0).flatten()
    weights = PixelWeights(masks, (18, 26))
    assert torch.equal(label_map(scores, weights), expected)
    monkeypatch.setattr(label_inference, "_MANY_CLASSES", 1)
    monkeypatch.setattr(label_inference, "_NEIGHBOURS", 13)
    assert torch.equal(label_map(scores, weights), expected)
    assert not label_map(torch.zeros_like(scores), weights).any()


def search(
    logits: Tensor,
    masks: Tensor,
    valid: Tensor,
    clip_logits: Tensor,
    weight: float,
    *,
    count: int = 2,
    doubt: float = 0.0,
) -> tuple[Tensor, int]:
    """Labels, and how many masks were looked at."""
    size = tuple(masks.shape[-2:])
    found = LabelSearch(logits.softmax(-1)[:, :-1], PixelWeights(masks, size), valid, SEEN, weight, doubt=doubt)
    rows = valid.cumsum(0) - 1
    looks = 0
    while len(chosen := found.next(count)):
        assert valid[chosen].all()
        looks += len(chosen)
        found.add(chosen, clip_logits[rows[chosen], :-1].softmax(-1))
    return found.labels().view(size), looks


@pytest.mark.parametrize("weight", [0.8, 0.5, 0.2, 0.0])
@pytest.mark.parametrize("seed", range(5))
def test_labels_are_those_of_looking_at_every_mask(seed: int, weight: float) -> None:
    logits, masks, valid, clip_logits = make(seed)
    expected = semantic_map(logits, masks, clip_logits, valid, SEEN, weight).argmax(0)
    labels, looks = search(logits, masks, valid, clip_logits, weight)
    assert torch.equal(labels, expected)
    assert looks <= int(valid.sum())


def test_masks_that_cannot_matter_are_not_looked_at() -> None:
    logits, masks, valid, clip_logits = make(3, confident=40.0)
    _, looks = search(logits, masks, valid, clip_logits, 0.5)
    assert 0 < looks <= 4 < int(valid.sum())  # a third of 12 queries see something


def test_doubt_bounds_the_labels_that_differ() -> None:
    all_looks, few_looks = 0, 0
    for seed in range(5):
        parts = make(seed, confident=6.0)
        expected, needed = search(*parts, 0.5, count=1)
        labels, looks = search(*parts, 0.5, count=1, doubt=0.2)
        assert (labels != expected).double().mean() <= 0.2
        all_looks += needed
        few_looks += looks
    assert few_looks < all_looks


def test_doubt_is_a_share(tmp_path: Path) -> None:
    cfg = load_config(str(write_config(tmp_path)), ["MODEL.CLIP_ADAPTER.LABELS_IN_DOUBT", "1.5"])
    with pytest.raises(InputError, match=r"LABELS_IN_DOUBT is 1.5; expected a share of pixels"):
        build_model(cfg)


def test_one_class_needs_no_look_at_all() -> None:
    _, masks, valid, _ = make(0)
    found = LabelSearch(torch.rand(len(masks), 1), PixelWeights(masks, (18, 26)), valid, torch.zeros(1), 0.5)
    assert len(found.next(4)) == 0
    assert not found.labels().any()


def test_no_valid_mask_leaves_the_queries_to_decide() -> None:
    logits, masks, valid, _ = make(2)
    nothing = torch.zeros_like(valid)
    for weight in (0.8, 0.2):
        expected = semantic_map(logits, masks, None, nothing, SEEN, weight).argmax(0)
        assert torch.equal(search(logits, masks, nothing, torch.zeros(0, 7), weight)[0], expected)


def test_equal_scores_take_the_first_class_as_argmax_does() -> None:
    masks = torch.full((2, 3, 4), 0.9)
    logits, clip_logits = torch.zeros(2, 7), torch.zeros(2, 7)
    labels, looks = search(logits, masks, torch.ones(2, dtype=torch.bool), clip_logits, 0.5)
    assert not labels.any() and looks == 2


@pytest.mark.parametrize("ensemble", [True, False])
@torch.no_grad()
def test_model_and_evaluator_do_without_scores(ensemble: bool, tmp_path: Path) -> None:
    options = ["MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE", str(ensemble)]
    cfg = load_config(str(write_config(tmp_path)), options)
    model = build_model(cfg).eval()
    model.sem_seg_head.predictor.query_embed.weight.mul_(30)  # masks that differ
    model.set_classes(CLASS_NAMES, [1, 1, 1, 0])
    inputs = [
        {"image": torch.randint(256, (3, 48, 64)), "height": height, "width": 80, "file_name": name}
        for height, name in ((60, "first"), (48, "second"))
    ]
    maps = [output["sem_seg"] for output in model(inputs)]
    model.labels_only = True
    outputs = model(inputs)
    for found, scores in zip(outputs, maps, strict=True):
        two = scores.topk(2, dim=0).values
        clear = two[0] - two[1] > 1e-5 * two[0]
        assert clear.float().mean() > 0.99
        assert found["labels"].shape == scores.shape[1:]
        assert torch.equal(found["labels"][clear], scores.argmax(0)[clear])


def test_evaluators_take_label_maps(tmp_path: Path) -> None:
    with registered(tmp_path):
        evaluator = GeneralizedSemSegEvaluator(TEST, distributed=False)
        records = [{"file_name": str(tmp_path / "images" / f"{number}.jpg")} for number in range(2)]
        truth = [evaluator._ground_truth[record] for record in records]
        evaluator.process(records, [{"labels": labels} for labels in truth])
        assert evaluator.evaluate()["sem_seg"]["pACC"] == 100
        with pytest.raises(InputError, match=r"has the size .* but .*0.jpg was predicted with \(4, 5\)"):
            evaluator.process(records[:1], [{"labels": torch.zeros(4, 5, dtype=torch.int64)}])


@pytest.mark.parametrize("key", ["TEST.AUG.ENABLED", "TEST.DENSE_CRF", "PSEUDO"])
def test_what_needs_scores_is_named(key: str, tmp_path: Path) -> None:
    cfg = load_config(str(write_config(tmp_path)), ["MODEL.CLIP_ADAPTER.LABELS_ONLY", "True", key, "True"])
    with pytest.raises(InputError, match=f"LABELS_ONLY is True, but {key} needs scores"):
        build_model(cfg)
