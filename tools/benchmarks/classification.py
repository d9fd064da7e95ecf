"""Evaluating a second prompt on a data set: image features are cached, so that only the class names are encoded.

    python tools/benchmarks/classification.py [--quick] [--json FILE] [--device cpu|cuda]

Prompts of 16 vectors on a made-up data set in the layout of DTD (47 classes, 300 x 225 pixels), from reading the split
to the metrics, model and process already there: ViT-B/16 and as many test images as DTD has; ``--quick``: ViT-B/32 and
four images per class. Both have random weights. The time of the second prompt is the shortest of three, of a new
prompt each; the first one's cannot be repeated.
"""

import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import open_clip
import torch
from _records import Record, parse_arguments, report, timed
from PIL import Image

from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.classification.class_features import ClassFeatureSource
from prompt_pretrain.classification.comparison import compare
from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.classification.split_files import SPLITS, SplitRow, write_split_file
from prompt_pretrain.classification.split_sets import SPLIT_SETS
from prompt_pretrain.clip import Clip, clip_from_config
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.vocabulary import load_vocabulary

DATA_SET = "DescribableTextures"
N_CTX = 16


def main() -> int:
    options = parse_arguments(__doc__)
    logging.disable(logging.WARNING)
    architecture, per_class = ("ViT-B-32", 4) if options.quick else ("ViT-B-16", 36)
    clip = clip_from_config({**open_clip.get_model_config(architecture), "quick_gelu": True}).to(options.device)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = write_data_set(root, per_class)
        warm_up(clip)
        first, *others = (
            timed(lambda: evaluate(clip, root, prompt, root / "cache"), options.device)  # noqa: B023
            for prompt in (SoftPrompt.random(N_CTX, clip.text_width, seed=seed) for seed in range(1, 5))
        )
    second = min(others)
    records = [
        Record("classification/first_prompt_s", first, "s"),
        Record("classification/second_prompt_s", second, "s", first, first / second),
        Record("classification/second_prompt_ratio", first / second, "x", ratio=first / second),
        Record("classification/images_per_s", images / first, "1/s"),
    ]
    report(records, options.json)
    return 0


def warm_up(clip: Clip) -> None:
    """Run both towers once, which no timing is to pay for."""
    with torch.no_grad():
        clip.encode_image(torch.zeros(1, 3, clip.image_size, clip.image_size, device=clip.device))
        source = ClassFeatureSource("", ClassTexts(SoftPrompt.random(N_CTX, clip.text_width)))
        source.encode(clip, load_vocabulary(DATA_SET).class_names)


def evaluate(clip: Clip, root: Path, prompt: SoftPrompt, cache: Path) -> float:
    """Accuracy of a prompt, as ``tools/evaluate_classification.py`` computes it."""
    data = load_classification_data(DATA_SET, root, test_only=True)
    source = ClassFeatureSource("prompt", ClassTexts(prompt))
    return compare(clip, data, [source], cache_folder=cache).rows[0].accuracy


def write_data_set(root: Path, per_class: int) -> int:
    """Random pictures, the same for training and testing; returns how many there are."""
    entry = SPLIT_SETS[DATA_SET]
    rng = np.random.RandomState(0)
    rows = []
    for label, name in enumerate(load_vocabulary(DATA_SET).class_names):
        folder = entry.image_folder(root) / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            small = rng.randint(0, 256, (15, 20, 3), dtype=np.uint8)
            Image.fromarray(small).resize((300, 225), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
            rows.append(SplitRow(f"{name}/{number}.jpg", label, name))
    write_split_file(entry.split_file(root), dict.fromkeys(SPLITS, rows))
    return len(rows)


if __name__ == "__main__":
    sys.exit(main())
