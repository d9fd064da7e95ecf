"""Several prompts on one data set, side by side; each image is encoded once for all of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prompt_pretrain import distributed
from prompt_pretrain.analysis import uniformity
from prompt_pretrain.classification.class_features import ClassFeatureSource
from prompt_pretrain.classification.evaluation import Evaluation, evaluate, feature_batches
from prompt_pretrain.classification.items import ClassificationData
from prompt_pretrain.classification.samplers import evaluation_indices
from prompt_pretrain.classification.transforms import eval_transform
from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.feature_cache import FeatureCache
from prompt_pretrain.vocabulary import find_ties

_COLUMNS = {
    "accuracy": "top-1",
    "top5_accuracy": "top-5",
    "perclass_accuracy": "per class",
    "macro_f1": "macro F1",
    "alignment": "alignment",
    "uniformity": "uniformity",
}
_LONGEST_NAME = 48


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several sources of class features on the images of one split.

    ``rows``: their metrics also hold ``uniformity`` of the class features (with two classes or more).
    """

    data_set: str
    split: str
    class_names: tuple[str, ...]
    clip_id: str
    rows: tuple[Evaluation, ...]

    def table(self) -> str:
        """Text for people: a line about the data, then one row per source. Accuracies in percent."""
        first = self.rows[0]
        header = f"{self.data_set} {self.split}: {first.num_images:,} images, {first.num_classes:,} classes"
        repeated = sum(len(ids) - 1 for ids in find_ties(self.class_names).values())
        if repeated:
            ceiling = first.metrics["tie_ceiling"]
            header += f"; repeated class names: {repeated:,}, so top-1 cannot exceed {ceiling:.1f}"
        names = [_shortened(row.name) for row in self.rows]
        width = max(map(len, names))
        lines = [header, " " * width + "".join(f"  {title:>10}" for title in _COLUMNS.values())]
        for name, row in zip(names, self.rows, strict=True):
            cells = (f"{row.metrics[key]:.2f}" if key in row.metrics else "-" for key in _COLUMNS)
            lines.append(f"{name:<{width}}" + "".join(f"  {cell:>10}" for cell in cells))
        return "\n".join(lines)

    def as_json(self, *, per_class: bool = False) -> dict[str, Any]:
        """Plain values; ``per_class`` adds the accuracy of every class to every row."""
        return {
            "data_set": self.data_set,
            "split": self.split,
            "clip": self.clip_id,
            "results": [row.as_json(self.class_names, per_class=per_class) for row in self.rows],
        }


def compare(
    clip: Clip,
    data: ClassificationData,
    sources: Sequence[ClassFeatureSource],
    *,
    split: str = "test",
    groups: Mapping[str, Sequence[int]] | None = None,
    cache_folder: str | os.PathLike | None = None,
    batch_size: int = 100,
    num_workers: int = 0,
    progress: bool = False,
) -> Comparison:
    """Evaluate every source on one split; all processes of a distributed run call this together.

    Args:
        split: attribute of ``data``: ``test``, ``val``, ``train`` or ``held_out``.
        groups: classes to report apart, see :func:`~prompt_pretrain.classification.evaluation.evaluate`.
        cache_folder: of image features; default the user's cache folder.
        progress: show a bar while images are encoded.
    Raises:
        InputError: an empty split, an image that cannot be read, a source that does not fit.
    """
    items = getattr(data, split)
    if not len(items):
        raise InputError(f"{data.name} in {data.root} has no {split} images; choose another --split")
    # What can fail quickly goes before the images.
    encoded = [(source.name, source.encode(clip, data.class_names, data.name)) for source in sources]
    cache = FeatureCache.build(
        clip,
        items,
        eval_transform(clip.image_size, clip.mean, clip.std),
        folder=cache_folder,
        batch_size=batch_size,
        num_workers=num_workers,
        on_corrupt="raise",
        progress=progress,
    )
    share = evaluation_indices(len(cache), batch_size, distributed.world_size(), distributed.rank())
    rows = []
    for name, class_features in encoded:
        result = evaluate(
            class_features,
            feature_batches(cache.features, cache.labels, indices=share),
            name=name,
            class_names=data.class_names,
            groups=groups,
            num_images=len(cache),
        )
        spread = {"uniformity": uniformity(class_features)} if len(class_features) > 1 else {}
        rows.append(replace(result, metrics={**result.metrics, **spread}))
    return Comparison(data.name, split, data.class_names, clip.clip_id, tuple(rows))


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
