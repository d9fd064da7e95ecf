"""A trained learner on any classification data set; features of the frozen image tower are cached."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from prompt_pretrain import distributed
from prompt_pretrain.baselines.evaluation import evaluate_learner
from prompt_pretrain.baselines.learners import Learner
from prompt_pretrain.classification.evaluation import Evaluation, feature_batches
from prompt_pretrain.classification.images import ImageDataset
from prompt_pretrain.classification.items import ClassificationData
from prompt_pretrain.classification.samplers import evaluation_indices
from prompt_pretrain.classification.transforms import eval_transform
from prompt_pretrain.errors import InputError
from prompt_pretrain.feature_cache import FeatureCache
from prompt_pretrain.feature_source import Autocast, EvaluationImages


def evaluate_on(
    learner: Learner,
    data: ClassificationData,
    *,
    split: str = "test",
    name: str = "",
    groups: Mapping[str, Sequence[int]] | None = None,
    cache_folder: str | os.PathLike | None = None,
    batch_size: int = 100,
    num_workers: int = 0,
    autocast: Autocast = nullcontext,
    progress: bool = False,
) -> Evaluation:
    """Evaluate on one split; all processes of a distributed run call this together.

    Raises:
        InputError: an empty split, an image that cannot be read, classes that the learner does not serve.
    """
    items = getattr(data, split)
    if not len(items):
        raise InputError(f"{data.name} in {data.root} has no {split} images; choose another --split")
    learner.prepare(data.class_names[:1] if learner.any_classes else data.class_names)  # fails before images are read
    clip = learner.clip
    transform = eval_transform(clip.image_size, clip.mean, clip.std)
    if learner.takes_images:
        batches = EvaluationImages(
            ImageDataset(items, transform, on_corrupt="raise"),
            batch_size=batch_size,
            num_workers=num_workers,
            device=clip.device,
        ).batches()
    else:
        cache = FeatureCache.build(
            clip,
            items,
            transform,
            folder=cache_folder,
            batch_size=batch_size,
            num_workers=num_workers,
            on_corrupt="raise",
            progress=progress,
        )
        share = evaluation_indices(len(cache), batch_size, distributed.world_size(), distributed.rank())
        batches = feature_batches(cache.features, cache.labels, indices=share)
    return evaluate_learner(
        learner, data.class_names, batches, autocast=autocast, name=name, groups=groups, num_images=len(items)
    )
