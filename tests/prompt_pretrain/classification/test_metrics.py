import numpy as np
import pytest
import torch
from torch.testing import assert_close

from prompt_pretrain import distributed
from prompt_pretrain.classification.metrics import ClassificationMetrics, RunningTopK, top_classes
from prompt_pretrain.errors import InputError


def collect(ranked, labels, num_classes=4):
    metrics = ClassificationMetrics(num_classes)
    metrics.update(torch.tensor(ranked), torch.tensor(labels))
    return metrics


def test_equal_scores_are_ranked_by_index():
    values, columns = top_classes(torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 3)
    assert columns.tolist() == [[1, 2, 3], [0, 1, 2]]
    assert values.tolist() == [[3.0, 3.0, 2.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_running_top_k_equals_sorting_all_columns_at_once(chunk):
    scores = torch.randint(0, 6, (20, 50), generator=torch.Generator().manual_seed(0)).float()  # full of ties
    running = RunningTopK(5)
    for part in scores.split(chunk, dim=1):
        running.update(part)
    assert_close(running.columns, scores.sort(dim=1, descending=True, stable=True).indices[:, :5])


def test_fewer_classes_than_k_are_all_ranked():
    running = RunningTopK(5)
    running.update(torch.tensor([[1.0, 2.0]]))
    running.update(torch.tensor([[3.0]]))
    assert running.columns.tolist() == [[2, 1, 0]]


def test_metrics_of_a_hand_computed_case():
    # class 0: 2 images, 1 right; class 1: 1 image, right; class 3: 1 image, wrong; class 2: guessed but absent.
    metrics = collect([[0, 1], [2, 0], [1, 0], [0, 3]], [0, 0, 1, 3])
    values = metrics.compute()
    assert values["accuracy"] == pytest.approx(50.0)
    assert values["error_rate"] == pytest.approx(50.0)
    assert values["perclass_accuracy"] == pytest.approx((50 + 100 + 0) / 3)
    assert values["macro_f1"] == pytest.approx((200 * 1 / 4 + 200 * 1 / 2 + 0) / 3)
    assert values["top5_accuracy"] == pytest.approx(100.0)
    assert [(c.label, c.images, c.correct, c.predicted) for c in metrics.per_class()] == [
        (0, 2, 1, 2),
        (1, 1, 1, 1),
        (3, 1, 0, 0),
    ]


def test_batches_add_up():
    ranked = np.random.RandomState(0).randint(0, 4, (30, 1))
    labels = np.random.RandomState(1).randint(0, 4, 30)
    parts = ClassificationMetrics(4)
    for start in range(0, 30, 7):
        parts.update(torch.from_numpy(ranked[start : start + 7]), torch.from_numpy(labels[start : start + 7]))
    assert parts.compute() == collect(ranked, labels).compute()


def test_restriction_keeps_the_images_of_some_classes():
    inside = collect([[0], [2], [1], [0]], [0, 0, 1, 3]).restricted(np.array([1, 3]))
    assert inside.labels.tolist() == [1, 3]
    assert inside.compute()["accuracy"] == 50.0


def test_results_of_processes_are_joined_in_rank_order_without_padding(monkeypatch):
    first, second = collect([[0], [1]], [0, 1]), collect([[2], [2]], [2, 2])  # the last image stands twice
    first.update(torch.tensor([[3]]), torch.tensor([3]))
    everyone = [(m.ranked, m.labels, m.label_cosines) for m in (first, second)]
    monkeypatch.setattr(distributed, "gather_objects", lambda value: everyone)
    second.gather(4)
    assert second.labels.tolist() == [0, 1, 3, 2]
    assert second.ranked.tolist() == [[0], [1], [3], [2]]


def test_without_images_every_metric_is_nan():
    assert all(np.isnan(value) for value in ClassificationMetrics(3).compute().values())


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_outside_the_classes_is_an_error(label):
    with pytest.raises(InputError, match=f"label {label} found, but there are 4 classes"):
        collect([[0]], [label])
