"""Both mappers against recorded samples."""

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segmentation  # noqa: F401
from detectron2.data import MetadataCatalog
from mask_former.data.dataset_mappers.mask_former_semantic_dataset_mapper import MaskFormerSemanticDatasetMapper
from segmentation.data.binary_mapper import MaskFormerBinarySemanticDatasetMapper
from segmentation.data.transforms import box_of_class, expand_box
from tests.golden_files import Golden
from tests.segmentation_recipes import registered_data_sets, released_config, set_values

MAPPERS = {
    "mask_former_semantic": MaskFormerSemanticDatasetMapper,
    "mask_former_binary_semantic": MaskFormerBinarySemanticDatasetMapper,
}


def build_mapper(golden: Golden, case: str) -> Any:
    """The mapper of a case such as ``binary_small.cat3``: its family (``binary*``), then its own settings."""
    name, recipes = case.split(".")[0], golden.meta["config"]
    family = next(
        recipe for pattern, recipe in recipes.items() if pattern.endswith("*") and name.startswith(pattern[:-1])
    )
    own = dict(recipes[name])
    is_train = own.pop("is_train", True)
    cfg = released_config(family)
    set_values(cfg, {**own, "DATASETS.TRAIN": ("golden_mapper",), "DATASETS.TEST": ("golden_mapper",)})
    return MAPPERS[cfg.INPUT.DATASET_MAPPER_NAME](cfg, is_train)


@pytest.mark.golden("zsseg_mapper")
def test_mappers(golden: Golden, tmp_path: Path) -> None:
    files = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "label.png")}
    labels, ignored = golden.arrays["label"], int(re.search(r"(\d+) ignore", golden.meta["inputs"]["label"])[1])
    Image.fromarray(golden.arrays["image"].transpose(1, 2, 0)).save(files["file_name"])
    Image.fromarray(labels).save(files["sem_seg_file_name"])
    classes = [str(number) for number in range(max(int(labels[labels != ignored].max()) + 1, 171))]
    with registered_data_sets({"golden_mapper": {"stuff_classes": classes}}):
        MetadataCatalog.get("golden_mapper").ignore_label = ignored
        for expected in golden.meta["cases"]:
            check_case(golden, expected, files)
    for expected in golden.meta["boxes"]:
        check_box(labels, expected)


def check_case(golden: Golden, expected: dict[str, Any], files: dict[str, str]) -> None:
    case, seed = expected["case"], expected["seed"]
    where = f"{golden.name} {case}, seed {seed}"
    mapper = build_mapper(golden, case)
    record: dict[str, Any] = dict(files)
    if ".cat" in case:
        record["category_id"] = int(case.split(".cat")[1])
    np.random.seed(seed)
    random.seed(seed)
    sample = mapper(record)
    image, labels, instances = sample["image"].numpy(), sample["sem_seg"].numpy(), sample["instances"]
    assert list(image.shape) == expected["image_shape"], where
    assert instances.gt_classes.tolist() == expected["gt_classes"], where
    assert instances.image_size == image.shape[1:], where
    found = {str(value): int(count) for value, count in zip(*np.unique(labels, return_counts=True), strict=True)}
    assert found == expected["sem_seg_hist"], where
    assert instances.gt_masks.flatten(1).sum(1).tolist() == expected["mask_pixels"], where
    assert int(image.sum(dtype=np.int64)) == expected["image_sum"], where
    for key, value in (("image", image), ("sem_seg", labels)):
        if f"{case}.{seed}.{key}" in golden.arrays:
            np.testing.assert_array_equal(value, golden.arrays[f"{case}.{seed}.{key}"], err_msg=f"{where}: {key}")


def check_box(labels: np.ndarray, expected: dict[str, Any]) -> None:
    box = box_of_class(labels, expected["label"])
    assert list(box) == expected["mask2box_xywh"]
    for key, value in expected.items():
        if key.startswith("expand_"):
            assert list(expand_box(box, float(key.removeprefix("expand_")), *labels.shape)) == value, key
