import pytest
import torch
from torch.testing import assert_close

from prompt_pretrain.class_sampling import ClassSampler
from prompt_pretrain.errors import InputError


def test_uniform_draws_distinct_classes_of_all() -> None:
    sampler = ClassSampler(20, 11, seed=3)
    seen = set()
    for step in range(50):
        ids = sampler.draw(step).ids
        assert ids.shape == (10,) and len(set(ids.tolist())) == 10
        seen.update(ids.tolist())
    assert seen == set(range(20))


def test_a_draw_depends_on_seed_step_and_rank_alone() -> None:
    first = ClassSampler(100, 20, seed=1)
    first.draw(0)
    assert torch.equal(first.draw(7, rank=2).ids, ClassSampler(100, 20, seed=1).draw(7, rank=2).ids)
    draws = [ClassSampler(100, 20, seed=s).draw(t, rank=r).ids.tolist() for s in (1, 2) for t in (0, 1) for r in (0, 1)]
    assert len({tuple(draw) for draw in draws}) == 8


def test_lists_per_image_never_hold_the_own_class() -> None:
    labels = torch.tensor([0, 4, 9, 9])
    sampler = ClassSampler(10, 10, scope="per_image", seed=0)
    ids = sampler.draw(0, labels=labels).ids
    for label, row in zip(labels.tolist(), ids.tolist(), strict=True):
        assert sorted(row) == [index for index in range(10) if index != label]


def test_frequency_follows_the_counts() -> None:
    counts = torch.tensor([1, 10, 100, 0, 889])
    sample = ClassSampler(5, 4, "frequency", frequencies=counts, seed=0)
    drawn = torch.cat([sample.draw(step).ids for step in range(3000)])
    assert_close(torch.bincount(drawn, minlength=5) / len(drawn), counts / counts.sum(), atol=0.01, rtol=0)
    log_q = sample.draw(0).log_q
    assert log_q is not None
    assert_close(log_q.exp(), counts / counts.sum(), atol=1e-6, rtol=0)


def test_similarity_prefers_near_classes_and_easy_far_ones() -> None:
    classes = torch.eye(6)
    images = torch.eye(6)[2:3]
    near = ClassSampler(6, 4, "similarity", class_features=classes, logit_scale=10.0).draw(0, image_features=images)
    far = ClassSampler(6, 4, "easy", class_features=classes, logit_scale=10.0).draw(0, image_features=images)
    assert near.log_q is not None and far.log_q is not None
    assert_close(near.log_q.exp()[2], torch.tensor(1 / (1 + 5 * torch.e**-10)), atol=1e-5, rtol=0)
    assert (near.ids == 2).all()
    assert (far.ids != 2).all()


def test_similarity_per_image_leaves_the_own_class_out() -> None:
    classes, labels = torch.eye(6), torch.tensor([2, 5])
    sampler = ClassSampler(6, 4, "similarity", scope="per_image", class_features=classes, logit_scale=10.0)
    sample = sampler.draw(0, labels=labels, image_features=torch.eye(6)[labels])
    assert sample.log_q is not None
    assert_close(sample.log_q.exp().sum(1), torch.ones(2))
    assert (sample.ids != labels.unsqueeze(1)).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((10, 11), {}, "11 classes per step cannot be sampled from 10; set TRAINER.POMP.UPDATE_CLASS_NUM to 3..10"),
        ((10, 2), {}, "2 classes per step"),
        ((10, 5, "hard"), {}, "sampling mode is 'hard'"),
        ((10, 5), {"scope": "rank"}, "sampling scope is 'rank'"),
        ((10, 5, "frequency"), {}, "needs 10 positive class counts, got none"),
        ((10, 5, "frequency"), {"frequencies": torch.ones(9)}, "needs 10 positive class counts, got 9"),
        ((10, 5, "similarity"), {}, "needs fixed features of the 10 classes"),
    ],
)
def test_bad_settings_are_named(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClassSampler(*arguments, **options)
