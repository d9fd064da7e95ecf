import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from prompt_pretrain.analysis import alignment
from prompt_pretrain.classification.evaluation import evaluate, feature_batches, harmonic_mean
from prompt_pretrain.classification.samplers import evaluation_indices
from prompt_pretrain.errors import InputError


def problem(num_classes=30, images=80, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    class_features = torch.randn(num_classes, width, generator=generator) * 7
    labels = torch.randint(0, num_classes, (images,), generator=generator)
    noise = torch.randn(images, width, generator=generator)
    features = F.normalize(class_features[labels], dim=1) * 3 + 1.2 * noise
    return class_features, features, labels


def test_equals_the_obvious_computation():
    weights, features, labels = problem()
    result = evaluate(weights, feature_batches(features, labels, batch_size=17), name="hard prompt")
    scores = F.normalize(features, dim=1) @ F.normalize(weights, dim=1).T
    assert result.name == "hard prompt"
    assert (result.num_images, result.num_classes) == (80, 30)
    assert 20 < result.accuracy < 95
    assert result.accuracy == pytest.approx(100 * (scores.argmax(1) == labels).float().mean().item())
    top5 = (scores.topk(5).indices == labels[:, None]).any(1).float().mean().item()
    assert result.metrics["top5_accuracy"] == pytest.approx(100 * top5)
    assert result.metrics["alignment"] == pytest.approx(alignment(features, weights, labels), abs=1e-6)
    assert result.metrics["tie_ceiling"] == 100.0
    assert sum(c.images for c in result.per_class) == 80


@pytest.mark.parametrize("chunk", [1, 7, 30, 8192])
def test_chunks_of_classes_change_nothing(chunk):
    weights, features, labels = problem()
    names = [f"class {i % 25}" for i in range(30)]
    weights[25:] = weights[:5]
    groups = {"base": range(20), "novel": range(20, 30)}
    whole = evaluate(weights, feature_batches(features, labels), class_names=names, groups=groups)
    parts = evaluate(weights, feature_batches(features, labels), class_names=names, groups=groups, class_chunk=chunk)
    np.testing.assert_array_equal(parts.ranked, whole.ranked)
    assert parts.metrics == pytest.approx(whole.metrics)
    assert parts.groups["novel"] == pytest.approx(whole.groups["novel"])


def test_permuted_classes_give_permuted_predictions():
    weights, features, labels = problem()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    place = torch.argsort(order)
    straight = evaluate(weights, feature_batches(features, labels))
    permuted = evaluate(weights[order], feature_batches(features, place[labels]))
    np.testing.assert_array_equal(order.numpy()[permuted.ranked], straight.ranked)
    assert permuted.metrics == pytest.approx(straight.metrics, abs=1e-4)


def test_of_classes_with_one_name_the_first_wins_and_the_ceiling_says_so():
    weights, features, _ = problem(num_classes=4, images=8)
    weights[3] = weights[1] * (1 + 1e-7)
    labels = torch.tensor([0, 1, 2, 3, 3, 3, 1, 0])
    features = weights[labels] + 0
    result = evaluate(weights, feature_batches(features, labels), class_names=["a", "b_c", "d", "b c"])
    assert result.ranked[:, 0].tolist() == [0, 1, 2, 1, 1, 1, 1, 0]
    assert result.ranked[3, :2].tolist() == [1, 3]
    assert result.accuracy == result.metrics["tie_ceiling"] == pytest.approx(100 * 5 / 8)


def test_classes_of_one_name_with_features_of_their_own_do_not_tie():
    weights = torch.eye(3)
    labels = torch.tensor([0, 1, 2])
    result = evaluate(weights, feature_batches(weights, labels), class_names=["crane", "crane", "dog"])
    assert result.accuracy == result.metrics["tie_ceiling"] == 100.0


def test_a_group_competes_among_itself_and_among_all():
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]])
    features = torch.tensor([[1.0, 0.1], [0.6, 0.8], [0.7, 0.6]])  # the second lies nearest to class 2
    labels = torch.tensor([0, 1, 2])
    result = evaluate(weights, feature_batches(features, labels), groups={"base": [0, 1], "novel": [2]})
    assert result.ranked[:, 0].tolist() == [0, 2, 2]
    assert result.groups["base"]["accuracy"] == 100.0
    assert result.groups["base"]["accuracy_all_classes"] == 50.0
    assert result.groups["novel"]["accuracy"] == result.groups["novel"]["accuracy_all_classes"] == 100.0
    assert harmonic_mean(50.0, 100.0) == pytest.approx(200 / 3)
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_a_group_without_images_is_left_out():
    weights, features, _ = problem()
    labels = torch.zeros(80, dtype=torch.int64)
    result = evaluate(weights, feature_batches(features, labels), groups={"base": [0, 1], "novel": [5, 6]})
    assert list(result.groups) == ["base"]


def test_stored_views_are_read_in_pieces_and_the_first_view_counts():
    features = np.arange(24, dtype=np.float16).reshape(4, 2, 3)
    batches = list(feature_batches(features, [3, 2, 1, 0], indices=[0, 2, 3], batch_size=2))
    assert [len(batch) for batch, _ in batches] == [2, 1]
    assert_close(batches[0][0], torch.tensor([[0.0, 1, 2], [12, 13, 14]]))
    assert batches[0][1].tolist() == [3, 1]
    assert batches[1][1].tolist() == [0]


def test_json_holds_metrics_and_classes_on_request():
    weights, features, labels = problem(num_classes=3, images=6)
    result = evaluate(weights, feature_batches(features, labels), name="p", groups={"base": [0, 1, 2]})
    assert result.as_json() == {
        "name": "p",
        "num_images": 6,
        "num_classes": 3,
        "metrics": dict(result.metrics),
        "groups": {"base": dict(result.groups["base"])},
    }
    records = result.as_json(["a", "b", "c"], per_class=True)["per_class"]
    assert [record["class_name"] for record in records] == ["abc"[record["label"]] for record in records]
    assert sum(record["images"] for record in records) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["one"]}, "30 class features for 1 class names"),
        ({"weights": torch.full((30, 16), torch.nan)}, "class features hold values that are not finite"),
        ({"features": torch.full((80, 16), torch.inf)}, "image features hold values that are not finite"),
        ({"features": torch.ones(80, 12)}, "image features have width 12 but class features 16"),
        ({"features": torch.ones(0, 16), "labels": torch.zeros(0)}, "no image to evaluate"),
        ({"groups": {"novel": [30]}}, "the group 'novel' names class 30, but there are 30 classes"),
        ({"groups": {"novel": []}}, "the group 'novel' has no class"),
    ],
)
def test_unusable_input_is_one_clear_error(change, message):
    weights, features, labels = problem()
    weights = change.pop("weights", weights)
    batches = feature_batches(change.pop("features", features), change.pop("labels", labels))
    with pytest.raises(InputError, match=message):
        evaluate(weights, batches, **change)


def _evaluate_share(rank: int, world: int, store: str, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    weights, features, labels = problem(images=21)
    share = evaluation_indices(21, 4, world, rank)
    groups = {"base": range(20), "novel": range(20, 30)}
    result = evaluate(weights, feature_batches(features, labels, indices=share), groups=groups, num_images=21)
    Path(out, f"{rank}.json").write_text(json.dumps(result.as_json(per_class=True)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    torch.multiprocessing.spawn(_evaluate_share, (2, str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    weights, features, labels = problem(images=21)
    groups = {"base": range(20), "novel": range(20, 30)}
    alone = evaluate(weights, feature_batches(features, labels), groups=groups).as_json(per_class=True)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone
