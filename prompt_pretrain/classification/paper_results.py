"""What the paper reports for zero-shot transfer (POMP, arXiv 2304.04704, Table 2; ViT-B/16, overall top-1 in percent).

All baselines were trained on 16 images per class of ImageNet-1K, POMP on ImageNet-21K. The row of the hand-written
prompt fits "a photo of a {}." for every set. "VPT" is variational prompt tuning there, not visual prompt tuning.
"""

from dataclasses import dataclass

CROSS_DATASET = (
    *("Caltech101", "OxfordPets", "StanfordCars", "OxfordFlowers", "Food101"),
    *("FGVCAircraft", "SUN397", "DescribableTextures", "EuroSAT", "UCF101"),
)
CROSS_DOMAIN = ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")
GROUPS = {"cross-dataset": CROSS_DATASET, "cross-domain": CROSS_DOMAIN}
CLIP = "ViT-B/16"


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper's Table 2.

    Attributes:
        source: what the prompt was learned on.
        accuracy: by data set.
        average: by group of data sets, as printed.
    """

    name: str
    source: str
    accuracy: dict[str, float]
    average: dict[str, float]


def _row(name: str, source: str, numbers: str) -> PaperRow:
    values = [float(number) for number in numbers.split()]
    first, rest = values[: len(CROSS_DATASET) + 1], values[len(CROSS_DATASET) + 1 :]
    accuracy = dict(zip(CROSS_DATASET, first, strict=False)) | dict(zip(CROSS_DOMAIN, rest, strict=False))
    return PaperRow(name, source, accuracy, {"cross-dataset": first[-1], "cross-domain": rest[-1]})


TABLE_2 = (
    _row("hard prompt", "", "93.3 88.2 65.6 67.4 85.3 23.7 62.6 44.3 42.0 65.1 63.7  60.9 46.1 47.8 74.0 57.2"),
    _row("CoOp", "ImageNet-1K", "93.7 89.1 64.5 68.7 85.3 18.5 64.2 41.9 46.4 66.6 63.9  64.2 48.0 49.7 75.2 59.3"),
    _row("CoCoOp", "ImageNet-1K", "94.4 90.1 65.3 71.9 86.1 22.9 67.4 45.7 45.4 68.2 65.7  64.1 48.8 50.6 76.2 59.9"),
    _row("VPT", "ImageNet-1K", "93.7 90.6 65.0 70.9 86.3 24.9 67.5 46.1 45.9 68.7 66.0  64.2 49.2 51.3 77.0 60.4"),
    _row("MaPLe", "ImageNet-1K", "93.5 90.5 65.6 72.2 86.2 24.7 67.0 46.5 48.1 68.7 66.3  64.1 49.2 50.9 77.0 60.3"),
    _row("POMP", "ImageNet-21K", "95.0 89.5 66.8 72.4 86.3 25.6 67.7 46.2 52.1 68.5 67.0  63.8 49.8 51.6 77.9 60.8"),
)
