import numpy as np
import torch

from prompt_pretrain.feature_source import CachedFeatures, EvaluationFeatures


def stored(n: int = 5, views: int = 3, width: int = 2) -> np.ndarray:
    """Feature (i, v) is (i, v)."""
    features = np.zeros((n, views, width), np.float16)
    features[:, :, 0] = np.arange(n)[:, None]
    features[:, :, 1] = np.arange(views)
    return features


def test_epochs_rotate_through_the_stored_views_and_rows_are_view_major():
    source = CachedFeatures(stored(), np.arange(5), np.ones(5, bool), views=2, device=torch.device("cpu"))
    for epoch, columns in enumerate([(0, 1), (2, 0), (1, 2), (0, 1)]):
        ((features, ok),) = source.batches(epoch, [np.array([4, 1])])
        assert ok is None and features.dtype == torch.float32
        assert features.tolist() == [[i, v] for v in columns for i in (4, 1)]


def test_unreadable_images_are_not_counted():
    valid = np.array([True, False, True, True, False])
    source = CachedFeatures(stored(), np.array([7, 0, 8, 9, 0]), valid, views=1, device=torch.device("cpu"))
    assert source.labels.tolist() == [7, 8, 9]
    ((features, _),) = source.batches(0, [np.array([1, 2])])
    assert features[:, 0].tolist() == [2, 3]
    images = EvaluationFeatures.from_cache(stored(), np.array([7, 0, 8, 9, 0]), valid, batch_size=2)
    ((features, labels),) = images.batches()
    assert images.num_images == 3 and labels.tolist() == [7, 8, 9] and features[:, 0].tolist() == [0, 2, 3]
