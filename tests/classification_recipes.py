"""Tiny copies of the published classification sets: right layouts, class names as published but few, made-up images."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# Registered name -> folder, image folder in it, image path of image `i` of class `c` called `n`.
SPLIT_LAYOUTS = {
    "Caltech101": ("caltech-101", "101_ObjectCategories", "{n}/image_{i:04d}.jpg"),
    "OxfordPets": ("oxford_pets", "images", "{n}_{i}.jpg"),
    "StanfordCars": ("stanford_cars", ".", "cars_{s}/{c}{i:04d}.jpg"),
    "OxfordFlowers": ("oxford_flowers", "jpg", "image_{c}{i:04d}.jpg"),
    "Food101": ("food-101", "images", "{n}/{i}.jpg"),
    "SUN397": ("sun397", "SUN397", "a/{n}/sun_{i}.jpg"),
    "DescribableTextures": ("dtd", "images", "{n}/{n}_{i:04d}.jpg"),
    "EuroSAT": ("eurosat", "2750", "{n}/{n}_{i}.jpg"),
    "UCF101": ("ucf101", "UCF-101-midframes", "{n}/v_{n}_g{i:02d}_c01.jpg"),
}
DOMAIN_LAYOUTS = {
    "ImageNetSketch": ("imagenet-sketch", "images"),
    "ImageNetA": ("imagenet-adversarial", "imagenet-a"),
    "ImageNetR": ("imagenet-rendition", "imagenet-r"),
}
# Sizes of classes differ, so that accuracy and mean per-class accuracy do.
SIZES = {"train": (5, 4, 3), "val": (2, 2, 2), "test": (2, 2, 1)}
NAMES = ("water_lily", "colt's foot", "yin yang")
WNIDS = ("n01498041", "n01531178", "n01534433")


def write_image(path: Path, seed: int = 0, width: int = 40, height: int = 36) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def write_split_set(
    root: Path, name: str, *, names: Sequence[str] = NAMES, sizes: Mapping[str, Sequence[int]] = SIZES
) -> Path:
    """Images and split file of one of the sets that have one; returns the split file."""
    folder, images, form = SPLIT_LAYOUTS[name]
    rows: dict[str, list] = {}
    number = 0
    for split, counts in sizes.items():
        rows[split] = []
        for label, count in enumerate(counts):
            for _ in range(count):
                number += 1
                side = "test" if split == "test" else "train"
                path = form.format(n=names[label].replace("/", "_"), c=label, i=number, s=side)
                write_image(root / folder / images / path, number)
                rows[split].append([path, label, names[label]])
    file = root / folder / f"split_zhou_{name}.json"
    file.write_text(json.dumps(rows, indent=4))
    return file


def write_aircraft(root: Path, variants: Sequence[str] = ("707-320", "Boeing 717", "F-16A/B")) -> Path:
    """FGVC-Aircraft: three lists instead of a split file; returns the folder."""
    folder = root / "fgvc_aircraft"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    number = 1000000
    for split, counts in SIZES.items():
        lines = []
        for label, count in enumerate(counts):
            for _ in range(count):
                number += 1
                write_image(folder / "images" / f"{number}.jpg", number % 1000)
                lines.append(f"{number} {variants[label]}")
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_domain_set(root: Path, name: str, per_class: int = 2) -> Path:
    """ImageNet-Sketch, -A or -R with three classes; returns the folder of the class folders."""
    folder = root.joinpath(*DOMAIN_LAYOUTS[name])
    for label, wnid in enumerate(WNIDS):
        for i in range(per_class):
            write_image(folder / wnid / f"{i}.jpg", 10 * label + i)
    (folder / "README.txt").write_text("about")
    return folder


def write_imagenet_v2(root: Path, labels: Sequence[int] = (0, 1, 10, 2)) -> Path:
    """ImageNetV2: folders called by label; returns the folder of the class folders."""
    folder = root / "imagenetv2" / "imagenetv2-matched-frequency-format-val"
    for label in labels:
        write_image(folder / str(label) / "a.jpeg", label)
    return folder


def write_all(root: Path) -> None:
    """All fourteen sets of the paper's Table 2."""
    for name in SPLIT_LAYOUTS:
        write_split_set(root, name)
    write_aircraft(root)
    for name in DOMAIN_LAYOUTS:
        write_domain_set(root, name)
    write_imagenet_v2(root)
