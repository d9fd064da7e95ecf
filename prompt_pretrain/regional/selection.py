"""Which downloaded images are trained on: the first ones of each class, on request without copies and poor matches."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.classification.items import ImageItem
from prompt_pretrain.classification.transforms import eval_transform
from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.feature_cache import FeatureCache
from prompt_pretrain.regional.classes import RegionalClass
from prompt_pretrain.regional.download import SHARD, read_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectionRules:
    """How images are chosen from the downloaded ones.

    Attributes:
        top_k: images of each class: 200 published for training, 300 for the detector.
        rescore: order them by the cosine of their own feature (of the downloaded image) and the class embedding,
            instead of the index' order, which is published.
        min_score: that cosine at least; only with ``rescore``.
        copy_above: two images of a class whose features have a larger cosine are copies, of which the better one stays;
            as are images that resemble one of ``avoid`` so much. 1 keeps all but equal files, as published.
    """

    top_k: int = 200
    rescore: bool = False
    min_score: float = -1.0
    copy_above: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top k of the selection is {self.top_k}; expected at least 1")
        if not 0 < self.copy_above <= 1:
            raise InputError(f"copies are told by a cosine above {self.copy_above}; expected a number in (0, 1]")

    @property
    def needs_features(self) -> bool:
        return self.rescore or self.copy_above < 1


def select(
    downloaded: str | os.PathLike,
    classes: Sequence[RegionalClass],
    rules: SelectionRules,
    *,
    clip: Clip | None = None,
    embeddings: ClassEmbeddings | None = None,
    avoid: Sequence[ImageItem] = (),
    cache_folder: str | os.PathLike | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> dict[str, list[str]]:
    """Paths of the chosen images, best first, by class folder; classes without any are left out.

    Args:
        downloaded: output of :func:`~prompt_pretrain.regional.download.download`.
        clip, embeddings: for rules that look at features.
        avoid: images that no copy of may be chosen: those of an evaluation.
    Raises:
        InputError: nothing was downloaded for any of the classes, or features are needed and cannot be made.
    """
    root = Path(downloaded)
    paths: dict[str, list[str]] = {}
    for item in classes:
        found = [
            str(root / item.folder / SHARD / record.file)
            for record in read_records(root / item.folder)
            if record.status == "ok" and (root / item.folder / SHARD / record.file).is_file()
        ]
        if found:
            paths[item.folder] = found
    if not paths:
        raise InputError(
            f"{root} holds no downloaded image of the {len(classes)} classes; its records.jsonl files say why"
        )
    if rules.needs_features:
        if clip is None or embeddings is None:
            raise InputError("scores of images need a CLIP and class embeddings; give both, or select by rank")
        features = _Features(clip, cache_folder, batch_size, num_workers)
        paths = _by_features(paths, classes, rules, features, embeddings, avoid)
    lacking = [item.folder for item in classes if len(paths.get(item.folder, ())) < rules.top_k]
    if lacking:
        logger.info("%d classes have fewer than %d images, first %s", len(lacking), rules.top_k, lacking[0])
    return {folder: found[: rules.top_k] for folder, found in paths.items() if found}


def write_detector_json(
    chosen: Mapping[str, Sequence[str]],
    classes: Sequence[RegionalClass],
    root: str | os.PathLike,
    path: str | os.PathLike,
) -> int:
    """Write chosen images of novel classes as the published image-level training set; returns their number.

    COCO's format with all categories and one dummy annotation per image; "pos_category_ids" of the images are what our
    own reader of image labels takes.

    Args:
        root: folder that the file names are relative to.
        classes: all classes, in the order of their ids.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rank = {item.folder: number for number, item in enumerate(classes, start=1)}
    for item in classes:
        for file in chosen.get(item.folder, ()):
            with Image.open(file) as image:
                width, height = image.size
            number = rank[item.folder]
            name = os.path.relpath(file, root).replace(os.sep, "/")
            images.append(
                {"id": len(images), "file_name": name, "height": height, "width": width, "pos_category_ids": [number]}
            )
            annotations.append(
                {
                    "id": len(images),
                    "image_id": len(images) - 1,
                    "category_id": number,
                    "bbox": [0, 0, 1, 1],
                    "area": 1,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": item.name} for number, item in enumerate(classes, start=1)]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
    return len(images)


class _Features:
    """Unit-norm image features, cached."""

    def __init__(self, clip: Clip, folder: str | os.PathLike | None, batch_size: int, num_workers: int) -> None:
        self.clip, self.folder = clip, folder
        self.batch_size, self.num_workers = batch_size, num_workers

    def __call__(self, items: Sequence[ImageItem]) -> np.ndarray:
        """(n, D) float32; zero for images that cannot be read."""
        cache = FeatureCache.build(
            self.clip,
            items,
            eval_transform(self.clip.image_size, self.clip.mean, self.clip.std),
            folder=self.folder,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )
        found = np.asarray(cache.features[:, 0], dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12)


def _by_features(
    paths: Mapping[str, Sequence[str]],
    classes: Sequence[RegionalClass],
    rules: SelectionRules,
    features: _Features,
    embeddings: ClassEmbeddings,
    avoid: Sequence[ImageItem],
) -> dict[str, list[str]]:
    embeddings.check(clip=features.clip)
    row = {name: number for number, name in enumerate(embeddings.class_names)}
    rows = {item.folder: row[item.name] for item in classes if item.name in row}
    weights = embeddings.normalized().numpy()
    seen = features(avoid) if len(avoid) and rules.copy_above < 1 else None
    everything = [ImageItem(path, 0) for of_class in paths.values() for path in of_class]
    encoded = features(everything)
    chosen: dict[str, list[str]] = {}
    start = 0
    for folder, of_class in paths.items():
        own = encoded[start : start + len(of_class)]
        start += len(of_class)
        if folder not in rows:
            raise InputError(f"{embeddings.source} has no embedding of the class of folder {folder}")
        scores = own @ weights[rows[folder]]
        order = np.argsort(-scores, kind="stable") if rules.rescore else np.arange(len(own))
        order = order[np.linalg.norm(own[order], axis=1) > 0]
        if rules.rescore:
            order = order[scores[order] >= rules.min_score]
        kept: list[int] = []
        for number in order.tolist():
            if len(kept) == rules.top_k:
                break
            rivals = own[kept] if kept else own[:0]
            if rules.copy_above < 1 and (
                _resembles(own[number], rivals, rules.copy_above)
                or (seen is not None and _resembles(own[number], seen, rules.copy_above))
            ):
                continue
            kept.append(number)
        chosen[folder] = [of_class[number] for number in kept]
    return chosen


def _resembles(feature: np.ndarray, others: np.ndarray, above: float) -> bool:
    return len(others) > 0 and float((others @ feature).max()) > above
