"""How time and memory grow with classes and images: exponents, and what they say about larger sizes.

    python tools/benchmarks/scaling.py [--quick] [--json FILE]

Each cost is measured at sizes that double or quadruple. ``…/exponent`` is the slope of a straight line through the
logarithms (1: proportional, 0: independent of the size). ``…/at_N`` continues the line through the two largest sizes:
a constant and a part proportional to the size. Times are CPU seconds of all threads. docs/SCALING.md draws the
conclusions.
"""

import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import _package_first  # noqa: F401  (before anything of ours)
import torch
from _records import Record, parse_arguments, report
from _synthetic_detections import SyntheticWorld
from _tensor_memory import peak_bytes
from evaluation import make_evaluator, run
from text_encoder import make_clip, saved_bytes, step

from detection.linear_scores import LinearScores
from detection.vocabulary_inference import detect
from prompt_pretrain.class_sampling import ClassSampler
from prompt_pretrain.classification.evaluation import evaluate
from prompt_pretrain.local_contrast import full_contrast_loss
from prompt_pretrain.prompt_tokens import tokenize_prompts, tokenize_texts
from prompt_pretrain.text_encoder import TextEncoder
from prompt_pretrain.vocabulary import load_vocabulary

WIDTH = 512  # of features, as of ViT-B/16
FAR = (100_000, 1_000_000)
Measure = Callable[[int], tuple[float, float]]  # size -> seconds, bytes


def main() -> int:
    options = parse_arguments(__doc__)
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    up = 1 if options.quick else 4
    costs: list[tuple[str, Measure, Sequence[int]]] = [
        ("full_contrast_step_by_classes", text_tower_step, [128 * up, 256 * up, 512 * up]),
        ("templates_by_classes", template_encoding, [128 * up, 256 * up, 512 * up]),
        ("sampling_by_classes", negative_sampling, [10_000 * up, 40_000 * up, 160_000 * up]),
        ("loss_by_classes", contrast_loss, [2_000 * up, 8_000 * up, 32_000 * up]),
        ("classification_by_classes", classification, [2_000 * up, 8_000 * up, 32_000 * up]),
        ("detector_scores_by_classes", detector_scores, [2_000 * up, 8_000 * up, 32_000 * up]),
    ]
    records = [record for name, measure, sizes in costs for record in growth(f"scaling/{name}", measure, sizes, FAR)]
    images = [100 * up, 200 * up, 400 * up]
    records += growth("scaling/lvis_evaluation_by_images", lvis_evaluation, images, (19_809, 1_000_000))
    report(records, options.json)
    return 0


def growth(name: str, measure: Measure, sizes: Sequence[int], far: Sequence[int]) -> list[Record]:
    """Exponents of time and memory, and both continued to the sizes ``far``."""
    seconds, memory = zip(*(measure(size) for size in sizes), strict=True)
    records = []
    for kind, values, scale, unit in (("time", seconds, 1.0, "s"), ("memory", memory, 1e-9, "GB")):
        if not any(values):
            continue
        records.append(Record(f"{name}/{kind}_exponent", exponent(sizes, values), ""))
        records.append(Record(f"{name}/{kind}_at_{sizes[-1]}", values[-1] * scale, unit))
        records += [Record(f"{name}/{kind}_at_{size}", extended(sizes, values, size) * scale, unit) for size in far]
    return records


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    """Fewest of ``repeats`` after one that is not counted: processor time, which other programs disturb least."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times[1:])


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(max(value, 1e-12)) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def extended(sizes: Sequence[int], values: Sequence[float], size: int) -> float:
    """The line through the two largest sizes, at ``size``; it does not fall."""
    slope = max(values[-1] - values[-2], 0.0) / (sizes[-1] - sizes[-2])
    return values[-1] + slope * (size - sizes[-1])


def text_tower_step(num_classes: int) -> tuple[float, float]:
    """Forward and backward of the text tower over all classes; bytes kept for backward."""
    clip = make_clip("cpu")
    prompts = tokenize_prompts(names(num_classes), clip.tokenizer, 16)
    encoder = TextEncoder(clip)
    ctx = (torch.randn(16, clip.text_width) * 0.02).requires_grad_()
    return cpu_seconds(lambda: step(encoder, prompts, ctx), 1), saved_bytes(encoder, prompts, ctx)


@torch.no_grad()
def template_encoding(num_classes: int) -> tuple[float, float]:
    """Class embeddings from a template."""
    clip = make_clip("cpu")
    prompts = tokenize_texts([f"a photo of a {name}." for name in names(num_classes)], clip.tokenizer)
    encoder = TextEncoder(clip)
    return cpu_seconds(lambda: encoder(prompts, None), 1), 0.0


def names(count: int) -> list[str]:
    """Every so many-th name of ImageNet-21K, so that counts share their distribution of lengths."""
    known = load_vocabulary("imagenet21k_full").class_names
    return list(known[:: len(known) // count][:count])


def negative_sampling(num_classes: int) -> tuple[float, float]:
    """The negatives of a step, K = 1000."""
    sampler = ClassSampler(num_classes, 1000)
    return cpu_seconds(lambda: sampler.draw(0), 3), peak_bytes(lambda: sampler.draw(0))


def contrast_loss(num_classes: int) -> tuple[float, float]:
    """Loss and gradients of 256 images against all classes, features given."""
    images = torch.nn.functional.normalize(torch.randn(256, WIDTH), dim=1)
    classes = torch.nn.functional.normalize(torch.randn(num_classes, WIDTH), dim=1).requires_grad_()
    labels = torch.randint(num_classes, (256,))

    def both() -> None:
        torch.autograd.grad(full_contrast_loss(images, classes, labels, 100.0), classes)

    return cpu_seconds(both, 2), peak_bytes(both)


def classification(num_classes: int) -> tuple[float, float]:
    """Zero-shot classification of 512 images, features given; the class features themselves do not count."""
    batches = [(torch.randn(512, WIDTH), torch.randint(num_classes, (512,)))]
    classes = torch.randn(num_classes, WIDTH)
    return cpu_seconds(lambda: evaluate(classes, batches), 1), peak_bytes(lambda: evaluate(classes, batches))


@torch.no_grad()
def detector_scores(num_classes: int) -> tuple[float, float]:
    """Scores, suppression and 300 detections of 256 regions by three stages, a few candidates per region."""
    weight = torch.nn.functional.normalize(torch.randn(WIDTH, num_classes + 1), dim=0)
    features = 50 * torch.nn.functional.normalize(torch.randn(256, WIDTH), dim=1)
    stages = [LinearScores(features, weight, torch.tensor([-8.0]))] * 3
    corners = torch.rand(256, 2) * 400
    boxes = torch.cat([corners, corners + 10 + torch.rand(256, 2) * 70], dim=1)

    def run_once() -> None:
        detect(
            stages, [boxes], [(480, 640)], proposal_scores=[torch.rand(256)],
            score_thresh=0.02, nms_thresh=0.5, topk_per_image=300, sigmoid=True,
        )  # fmt: skip

    return cpu_seconds(run_once, 2), peak_bytes(run_once)


def lvis_evaluation(images: int) -> tuple[float, float]:
    """From 300 detections per image to AP over 1203 classes."""
    world = SyntheticWorld(images, num_classes=1203, detections_per_image=300, federated=True).draw()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"lvis_{images}.json"  # names the data set
        path.write_text(json.dumps(world.annotations))
        evaluator = make_evaluator("lvis", "bbox", str(path))
        return cpu_seconds(lambda: run(evaluator, world), 1), 0.0


if __name__ == "__main__":
    sys.exit(main())
