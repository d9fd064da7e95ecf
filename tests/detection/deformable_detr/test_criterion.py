import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import detection  # noqa: F401  makes detectron2 importable
from detection.deformable_detr.criterion import HungarianMatcher, SetCriterion, Target, image_label_loss
from detection.deformable_detr.model import Prediction
from prompt_pretrain.errors import InputError

WEIGHTS = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def predictions(batch: int = 2, queries: int = 5, classes: int = 4, seed: int = 0) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(batch, queries, 4, generator=generator) * 0.4 + 0.1
    return Prediction(torch.randn(batch, queries, classes, generator=generator), boxes)


def targets(*counts: int, classes: int = 4) -> list[Target]:
    generator = torch.Generator().manual_seed(9)
    return [
        Target(torch.randint(classes, (n,), generator=generator), torch.rand(n, 4, generator=generator) * 0.4 + 0.1)
        for n in counts
    ]


def criterion(classes: int = 4, **options) -> SetCriterion:
    return SetCriterion(num_classes=classes, matcher=HungarianMatcher(), weights=WEIGHTS, **options)


def test_matching_is_the_cheapest_of_all():
    matcher, predicted, wanted = HungarianMatcher(), predictions(), targets(3, 2)
    for i, (rows, columns) in enumerate(matcher(predicted, wanted)):
        cost = matcher._cost(predicted.logits[i], predicted.boxes[i], wanted[i])
        count = cost.shape[1]
        cheapest = min(sum(cost[row, c] for c, row in enumerate(p)) for p in itertools.permutations(range(5), count))
        assert_close(cost[rows, columns].sum(), cheapest)
        assert sorted(columns.tolist()) == list(range(count))


def test_class_cost_is_the_change_of_the_focal_loss():
    matcher = HungarianMatcher(cost_class=1.0, cost_bbox=0.0, cost_giou=0.0)
    cost = matcher._cost(torch.zeros(1, 2), torch.full((1, 4), 0.5), Target(torch.tensor([1]), torch.full((1, 4), 0.5)))
    assert_close(cost.item(), (0.25 - 0.75) * 0.25 * torch.tensor(2.0).log().item())


def test_losses_of_perfect_predictions_vanish():
    wanted = targets(2, 1)
    logits = torch.full((2, 3, 4), -30.0)
    boxes = torch.full((2, 3, 4), 0.5)
    for i, target in enumerate(wanted):
        for row, (label, box) in enumerate(zip(*target, strict=True)):
            logits[i, row, label], boxes[i, row] = 30.0, box
    losses = criterion()([Prediction(logits, boxes)], None, wanted)
    assert set(losses) == set(WEIGHTS)
    assert all(loss.abs() < 1e-4 for loss in losses.values())


def test_each_layer_and_the_first_stage_have_losses_of_their_own():
    layers, first = [predictions(seed=i) for i in range(3)], predictions(queries=20, seed=3)
    losses = criterion()(layers, first, targets(2, 1))
    assert set(losses) == {name + suffix for name in WEIGHTS for suffix in ("", "_0", "_1", "_enc")}
    alone = criterion()(layers[-1:], None, targets(2, 1))
    assert_close(alone["loss_giou"], losses["loss_giou"])


def test_the_first_stage_learns_class_0_only():
    first, wanted = predictions(), targets(2, 1)
    relabelled = [Target(torch.zeros_like(target.labels), target.boxes) for target in wanted]
    with_stage = criterion()([predictions(seed=1)], first, wanted)
    assert_close(with_stage["loss_ce_enc"], criterion()([first], None, relabelled)["loss_ce"])


def test_images_without_objects_only_push_scores_down():
    predicted = predictions()
    predicted.logits.requires_grad_()
    losses = criterion()([predicted], None, targets(0, 0))
    assert losses["loss_bbox"] == 0 and losses["loss_giou"] == 0
    losses["loss_ce"].backward()
    assert (predicted.logits.grad > 0).all()


def test_federated_loss_leaves_other_classes_alone():
    weights = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    predicted = predictions(classes=6)
    predicted.logits.requires_grad_()
    wanted = [Target(torch.tensor([5]), torch.full((1, 4), 0.3)), targets(0)[0]]
    criterion(6, fed_loss_weight=weights, fed_loss_num_cat=3)([predicted], None, wanted)["loss_ce"].backward()
    touched = predicted.logits.grad.abs().sum(dim=(0, 1)) > 0
    assert touched.tolist() == [True, False, True, False, False, True]


def test_federated_loss_over_all_classes_is_the_plain_one():
    predicted, wanted = predictions(), targets(2, 1)
    plain = criterion()([predicted], None, wanted)
    federated = criterion(fed_loss_weight=torch.ones(4), fed_loss_num_cat=4)([predicted], None, wanted)
    assert_close(federated["loss_ce"], plain["loss_ce"])


def test_predictions_that_are_not_finite_are_an_error():
    predicted = predictions()
    predicted.boxes[0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        criterion()([predicted], None, targets(1, 1))


def test_image_labels_teach_the_largest_box_of_each_layer():
    layers, labels = [predictions(seed=i) for i in range(2)], [[1, 3], [0]]
    expected = torch.zeros(())
    for layer in layers:
        for i, image_labels in enumerate(labels):
            row = (layer.boxes[i, :, 2] * layer.boxes[i, :, 3]).argmax()
            for label in image_labels:
                truth = F.one_hot(torch.tensor(label), 4).float()
                loss = F.binary_cross_entropy_with_logits(layer.logits[i, row], truth, reduction="sum")
                expected = expected + loss / len(image_labels) / len(labels)
    assert_close(image_label_loss(layers, labels), expected)


def test_images_without_labels_add_nothing():
    layers = [predictions()]
    assert image_label_loss(layers, [[], []]) == 0
    assert_close(
        2 * image_label_loss(layers, [[2], []]), image_label_loss([Prediction(*(x[:1] for x in layers[0]))], [[2]])
    )


def test_an_unknown_image_label_is_an_error():
    with pytest.raises(InputError, match="image label 4 is no class: MODEL.DETR.NUM_CLASSES is 4"):
        image_label_loss([predictions()], [[4], [0]])
