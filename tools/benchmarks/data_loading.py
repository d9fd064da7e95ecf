"""Loading training batches: our loader and mapper against a torch DataLoader with torchvision's transforms.

    python tools/benchmarks/data_loading.py [--quick] [--json FILE] [--device cpu|cuda]

Both read the same JPEGs, scale the short side, flip at random and transform eight boxes per image, in this process and
in two workers. Also how long an LVIS-like annotation file takes to load, against parsing its JSON. Above 1 is faster.
"""

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _records import Record, parse_arguments, report
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import tv_tensors
from torchvision.transforms import v2

import third_party  # noqa: F401  makes detectron2 importable
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.datasets import load_lvis_json

HEIGHT, WIDTH = 480, 640
BOXES = 8
BATCH = 4
SHORT_EDGE, LONG_EDGE = 800, 1333


def main() -> int:
    options = parse_arguments(__doc__)
    logging.disable(logging.INFO)
    torch.set_num_threads(1)  # as in the workers of a loader
    seconds = 8 if options.quick else 40
    records = []
    with tempfile.TemporaryDirectory() as folder:
        entries = write_images(Path(folder), 16 if options.quick else 64)
        for workers in (0, 2):
            makers = [partial(make, entries, workers) for make in (make_ours, make_torchvision)]
            ours, theirs = fastest(*makers, seconds, workers)
            name = "data_loader" + (f"_{workers}_workers" if workers else "")
            records.append(Record(f"detectron2/{name}_ratio", theirs / ours, "x", ratio=theirs / ours))
            records.append(Record(f"detectron2/{name}_ms_per_image", ours * 1e3, "ms", theirs * 1e3, theirs / ours))
            per_second = (1 / ours, 1 / theirs)
            records.append(Record(f"detectron2/{name}_images_per_second", per_second[0], "images/s", per_second[1]))
        records += time_annotations(Path(folder) / "lvis.json", 20_000 if options.quick else 200_000)
    report(records, options.json)
    return 0


def write_images(folder: Path, count: int) -> list[dict[str, Any]]:
    """JPEGs of smooth colours with entries in detectron2's format."""
    rng = np.random.RandomState(0)
    entries = []
    for number in range(count):
        coarse = Image.fromarray(rng.randint(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8))
        path = folder / f"{number}.jpg"
        coarse.resize((WIDTH, HEIGHT), Image.BICUBIC).save(path, quality=90)
        corners = np.sort(rng.rand(BOXES, 2, 2) * [WIDTH, HEIGHT], axis=1).reshape(-1, 4)
        annotations = [{"bbox": box, "bbox_mode": 0, "category_id": 1} for box in corners.tolist()]
        entries.append(
            {
                "file_name": str(path),
                "image_id": number,
                "height": HEIGHT,
                "width": WIDTH,
                "annotations": annotations,
            }
        )
    return entries


def make_ours(entries: list[dict[str, Any]], workers: int) -> Iterator[Any]:
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.FORMAT = (SHORT_EDGE,), LONG_EDGE, "RGB"
    mapper = DatasetMapper(cfg, is_train=True)
    return iter(build_detection_train_loader(entries, mapper=mapper, total_batch_size=BATCH, num_workers=workers))


class TorchvisionDataset(Dataset):
    """The same in torchvision's words."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self.entries = entries
        self.transform = v2.Compose(
            [
                v2.RandomShortestSize(SHORT_EDGE, LONG_EDGE),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ClampBoundingBoxes(),
                v2.SanitizeBoundingBoxes(),
            ]
        )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Any:
        entry = self.entries[index]
        with Image.open(entry["file_name"]) as file:
            image = file.convert("RGB")
        boxes = torch.tensor([annotation["bbox"] for annotation in entry["annotations"]])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(entry["height"], entry["width"])),
            "labels": torch.tensor([annotation["category_id"] for annotation in entry["annotations"]]),
        }
        return self.transform(image, target)


def make_torchvision(entries: list[dict[str, Any]], workers: int) -> Iterator[Any]:
    dataset = TorchvisionDataset(entries)
    sampler = RandomSampler(dataset, replacement=True, num_samples=10**7)
    return iter(DataLoader(dataset, BATCH, sampler=sampler, num_workers=workers, collate_fn=list))


def fastest(
    ours: Callable[[], Iterator[Any]], theirs: Callable[[], Iterator[Any]], seconds: float, workers: int
) -> tuple[float, float]:
    """Shortest time per image of each, in seconds, taking turns. Each turn has workers of its own."""
    times: tuple[list[float], list[float]] = [], []
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or time.perf_counter() < end:
        for make, found in zip((ours, theirs), times, strict=True):
            batches = make()
            for _ in range(1 + 4 * workers):  # what workers had prepared before the clock starts does not count
                next(batches)
            # Alone, the process' own time counts, which other programs disturb less.
            clock = time.perf_counter if workers else time.process_time
            found.append(timed(lambda batches=batches: [next(batches) for _ in range(8)], clock) / (8 * BATCH))
            del batches
    return min(times[0]), min(times[1])


def time_annotations(path: Path, count: int) -> list[Record]:
    """Loading an LVIS-like file, against parsing its JSON."""
    rng = np.random.RandomState(0)
    images = [
        {"id": number, "coco_url": f"http://host/train2017/{number}.jpg", "height": HEIGHT, "width": WIDTH}
        for number in range(count // 12)
    ]
    annotations = [
        {
            "id": number,
            "image_id": number % len(images),
            "category_id": number % 1203 + 1,
            "bbox": [1.5, 2.5, 30.25, 40.75],
            "area": 100.5,
            "segmentation": [(rng.rand(2 * rng.randint(6, 50)) * 400).round(2).tolist()],
        }
        for number in range(count)
    ]
    categories = [{"id": number, "name": str(number)} for number in range(1, 1204)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    del images, annotations
    parsing = min(timed(lambda: json.loads(path.read_text())) for _ in range(2))
    loading = min(timed(lambda: load_lvis_json(str(path), "")) for _ in range(2))
    return [Record("detectron2/annotations_us", loading / count * 1e6, "us", parsing / count * 1e6, parsing / loading)]


def timed(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


if __name__ == "__main__":
    sys.exit(main())
