"""Records of box-annotated and image-labelled images as inputs of the detector."""

import copy
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

import detection  # noqa: F401  (makes detectron2 importable)
from centernet.config import add_centernet_config
from detection.config import add_detic_config
from detection.data.mapper import CustomDatasetMapper, build_train_mapper
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode
from prompt_pretrain.classification.decoding import ImageError
from prompt_pretrain.errors import InputError

WIDTH, HEIGHT = 64, 48


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """An image of the first data set with two objects and a crowd."""
    Image.fromarray(pixels()).save(tmp_path / "a.png")

    def annotation(category: int, *box: float, **extra: Any) -> dict[str, Any]:
        x, y, w, h = box
        polygon = [x, y, x + w, y, x + w, y + h]
        return {
            "bbox": list(box),
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": category,
            "segmentation": [polygon],
        } | extra

    annotations = [annotation(3, 4.0, 6.0, 20.0, 10.0), annotation(1, 30.0, 8.0, 9.5, 30.25)]
    annotations.append(annotation(7, 0.0, 0.0, 64.0, 48.0, iscrowd=1))
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 1,
        "width": WIDTH,
        "height": HEIGHT,
        "dataset_source": 0,
        "annotations": annotations,
    }


@pytest.fixture
def labelled(record: dict[str, Any]) -> dict[str, Any]:
    """The same image in the second data set, with image labels."""
    return record | {"annotations": [], "pos_category_ids": [5, 2], "dataset_source": 1}


def settings(**values: Any) -> CfgNode:
    cfg = get_cfg()
    add_centernet_config(cfg)
    add_detic_config(cfg)
    values = {
        "WITH_IMAGE_LABELS": True,
        "MODEL__MASK_ON": True,
        "INPUT__CUSTOM_AUG": "EfficientDetResizeCrop",
        "INPUT__FORMAT": "RGB",
        "DATASETS__TRAIN": ("boxes", "labels"),
        "DATALOADER__DATASET_ANN": ["box", "image"],
        "DATALOADER__USE_DIFF_BS_SIZE": True,
        "DATALOADER__DATASET_INPUT_SIZE": [64, 32],
        "DATALOADER__DATASET_INPUT_SCALE": [[1.0, 1.0], [1.0, 1.0]],
    } | values
    cfg.merge_from_list([part for name, value in values.items() for part in (name.replace("__", "."), value)])
    return cfg


def test_boxes_and_labels_are_mapped_by_the_settings_of_their_data_set(
    record: dict[str, Any], labelled: dict[str, Any]
) -> None:
    mapper = CustomDatasetMapper(settings(), True)
    before = copy.deepcopy([record, labelled])
    boxes, labels = mapper(record), mapper(labelled)
    assert [record, labelled] == before
    assert boxes["image"].shape == (3, 48, 64) and boxes["image"].dtype == torch.uint8
    assert labels["image"].shape == (3, 24, 32)
    assert (boxes["ann_type"], boxes["pos_category_ids"]) == ("box", [])
    assert (labels["ann_type"], labels["pos_category_ids"]) == ("image", [5, 2])
    assert boxes["instances"].gt_classes.tolist() == [3, 1]
    assert boxes["instances"].has("gt_masks")
    assert len(labels["instances"]) == 0 and not labels["instances"].has("gt_masks")
    assert labels["instances"].gt_boxes.tensor.shape == (0, 4)
    assert "annotations" not in boxes and boxes["image_id"] == 1


def test_arrays_in_a_record_stay_as_they_are(record: dict[str, Any]) -> None:
    polygon = np.array(record["annotations"][0]["segmentation"][0])
    record["annotations"][0]["segmentation"] = [polygon]
    before = polygon.copy()
    mapper = CustomDatasetMapper(settings(DATALOADER__DATASET_INPUT_SIZE=[32, 32]), True)
    first = mapper(record)["instances"].gt_masks.get_bounding_boxes().tensor[0]
    assert_array_equal(polygon, before)
    assert (first <= 32).all()


def test_boxes_and_masks_follow_the_flip_and_the_window(record: dict[str, Any]) -> None:
    mapper = CustomDatasetMapper(settings(), True)
    seen = set()
    for seed in range(8):
        np.random.seed(seed)
        sample = mapper(record)
        flipped = not torch.equal(sample["image"], torch.from_numpy(pixels()).permute(2, 0, 1))
        seen.add(flipped)
        expected = [40.0, 6.0, 60.0, 16.0] if flipped else [4.0, 6.0, 24.0, 16.0]
        assert sample["instances"].gt_boxes.tensor[0].tolist() == expected
        mask_box = sample["instances"].gt_masks.get_bounding_boxes().tensor[0]
        assert mask_box.tolist() == expected
    assert seen == {True, False}


def test_objects_outside_of_the_window_are_left_out(record: dict[str, Any]) -> None:
    cfg = settings(DATALOADER__DATASET_INPUT_SIZE=[24, 32], DATALOADER__DATASET_INPUT_SCALE=[[4.0, 4.0], [1.0, 1.0]])
    mapper = CustomDatasetMapper(cfg, True)
    counts = set()
    for seed in range(10):
        np.random.seed(seed)
        sample = mapper(record)
        assert sample["image"].shape == (3, 24, 24)
        box = sample["instances"].gt_boxes.tensor
        assert (box >= 0).all() and (box <= 24).all() and (box[:, 2:] > box[:, :2]).all()
        counts.add(len(box))
    assert min(counts) < 2


def test_bgr_images_and_images_without_masks(record: dict[str, Any]) -> None:
    cfg = settings(INPUT__FORMAT="BGR", MODEL__MASK_ON=False, INPUT__RANDOM_FLIP="none")
    sample = CustomDatasetMapper(cfg, True)(record)
    assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), pixels()[:, :, ::-1])
    assert not sample["instances"].has("gt_masks")


def test_evaluation_has_no_annotations_and_the_common_size(record: dict[str, Any]) -> None:
    sample = CustomDatasetMapper(settings(INPUT__TEST_SIZE=32), False)(record)
    assert sample["image"].shape == (3, 24, 32)
    assert "instances" not in sample and "annotations" not in sample and "ann_type" not in sample
    assert (sample["width"], sample["height"]) == (WIDTH, HEIGHT)


def test_shortest_edges_per_data_set(record: dict[str, Any], labelled: dict[str, Any]) -> None:
    cfg = settings(
        INPUT__CUSTOM_AUG="ResizeShortestEdge",
        INPUT__MIN_SIZE_TRAIN=(96, 96),
        DATALOADER__DATASET_MIN_SIZES=[[96, 96], [24, 24]],
        DATALOADER__DATASET_MAX_SIZES=[1333, 1333],
    )
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    mapper = CustomDatasetMapper(cfg, True)
    assert mapper(record)["image"].shape == (3, 96, 128)
    assert mapper(labelled)["image"].shape == (3, 24, 32)


def test_one_size_for_all_data_sets(record: dict[str, Any], labelled: dict[str, Any]) -> None:
    cfg = settings(DATALOADER__USE_DIFF_BS_SIZE=False, INPUT__TRAIN_SIZE=32, INPUT__SCALE_RANGE=(1.0, 1.0))
    mapper = CustomDatasetMapper(cfg, True)
    assert mapper(record)["image"].shape == mapper(labelled)["image"].shape == (3, 24, 32)


def test_debugging_takes_labels_from_boxes(record: dict[str, Any], labelled: dict[str, Any]) -> None:
    mapper = CustomDatasetMapper(settings(IS_DEBUG=True), True)
    sample = mapper(record | {"dataset_source": 1})
    assert (sample["ann_type"], sample["pos_category_ids"]) == ("box", [1, 3])
    assert mapper(labelled)["pos_category_ids"] == [5, 2]


def test_captions_and_other_keys_stay(labelled: dict[str, Any]) -> None:
    sample = CustomDatasetMapper(settings(), True)(labelled | {"captions": ["a cat"], "neg_category_ids": [4]})
    assert (sample["captions"], sample["neg_category_ids"]) == (["a cat"], [4])


def test_the_mapper_suits_the_training() -> None:
    assert isinstance(build_train_mapper(settings()), CustomDatasetMapper)
    plain = build_train_mapper(settings(WITH_IMAGE_LABELS=False, INPUT__TRAIN_SIZE=320))
    assert type(plain) is DatasetMapper
    assert plain.augmentations.augs[0].target_size == (320, 320)
    default = build_train_mapper(settings(WITH_IMAGE_LABELS=False, INPUT__CUSTOM_AUG=""))
    assert type(default.augmentations.augs[0]).__name__ == "ResizeShortestEdge"


def tar_settings(folder: Path, **values: Any) -> CfgNode:
    """Settings for an archive of one image and one file of garbage."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(3)).save(buffer, "PNG")
    with tarfile.open(folder / "n01.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        offsets = [0]
        for name, content in (("a.JPEG", buffer.getvalue()), ("b.JPEG", b"garbage")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            offsets.append(archive.offset // 512)
    np.save(folder / "n01_offsets.npy", offsets)
    np.save(folder / "tar_files.npy", np.array([str(folder / "n01.tar")]))
    return settings(
        DATALOADER__USE_TAR_DATASET=True,
        DATALOADER__TARFILE_PATH=str(folder / "tar_files.npy"),
        DATALOADER__TAR_INDEX_DIR=str(folder),
        DATALOADER__DATASET_INPUT_SIZE=[64, 64],
        INPUT__RANDOM_FLIP="none",
        **values,
    )


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_images_come_from_archives(tmp_path: Path, labelled: dict[str, Any], image_format: str) -> None:
    mapper = CustomDatasetMapper(tar_settings(tmp_path, INPUT__FORMAT=image_format), True)
    del labelled["file_name"]
    sample = mapper(labelled | {"tar_index": 0})
    expected = pixels(3) if image_format == "RGB" else pixels(3)[:, :, ::-1]
    assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), expected)
    with pytest.raises(ImageError, match="image 1"):
        mapper(labelled | {"tar_index": 1})
    with pytest.raises(InputError, match=r"image 2 of the tar data set.*the annotations and DATALOADER.TARFILE_PATH"):
        mapper(labelled | {"tar_index": 2})


def test_an_image_that_comes_from_nowhere(labelled: dict[str, Any]) -> None:
    del labelled["file_name"]
    with pytest.raises(InputError, match=r"image 1 has neither a file_name nor, with DATALOADER.USE_TAR_DATASET"):
        CustomDatasetMapper(settings(), True)(labelled | {"tar_index": 0})


def test_an_image_of_another_size_than_its_record_says(record: dict[str, Any]) -> None:
    with pytest.raises(SizeMismatchError):
        CustomDatasetMapper(settings(), True)(record | {"width": 63})


def test_masks_of_some_objects_only(record: dict[str, Any]) -> None:
    del record["annotations"][1]["segmentation"]
    with pytest.raises(InputError, match=r"^annotations of .*a.png: "):
        CustomDatasetMapper(settings(), True)(record)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
def test_images_of_one_pixel(
    tmp_path: Path, labelled: dict[str, Any], shape: tuple[int, int], image_format: str
) -> None:
    height, width = shape
    Image.fromarray(pixels()[:height, :width]).save(tmp_path / "one.png")
    one = labelled | {"file_name": str(tmp_path / "one.png"), "width": width, "height": height}
    mapper = CustomDatasetMapper(settings(INPUT__FORMAT=image_format, INPUT__MASK_FORMAT="bitmask"), True)
    mask = pycocotools.mask.encode(np.asfortranarray(np.ones(shape, np.uint8)))
    box = {"bbox": [0.0, 0.0, width, height], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "segmentation": mask}
    for seed in range(4):
        np.random.seed(seed)
        sample = mapper(one | {"annotations": [box]})
        assert max(sample["image"].shape[1:]) == 32
        assert len(sample["instances"].gt_masks) == 1


def test_settings_must_cover_every_data_set(record: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="DATALOADER.DATASET_ANN holds 'boxes', expected one of box, image, caption"):
        CustomDatasetMapper(settings(DATALOADER__DATASET_ANN=["boxes", "image"]), True)
    with pytest.raises(InputError, match="DATALOADER.DATASET_INPUT_SIZE has 1 entries for the 2 data sets"):
        CustomDatasetMapper(settings(DATALOADER__DATASET_INPUT_SIZE=[64]), True)
    with pytest.raises(InputError, match="DATALOADER.DATASET_MAX_SIZES has 1 entries for the 2 data sets"):
        cfg = settings(INPUT__CUSTOM_AUG="ResizeShortestEdge", DATALOADER__DATASET_MAX_SIZES=[64])
        CustomDatasetMapper(cfg, True)
    with pytest.raises(InputError, match="USE_DIFF_BS_SIZE needs INPUT.CUSTOM_AUG EfficientDetResizeCrop or Resize"):
        CustomDatasetMapper(settings(INPUT__CUSTOM_AUG="DETR"), True)
    mapper = CustomDatasetMapper(settings(), True)
    with pytest.raises(InputError, match=r"of training set number 3, but there are 2 sizes and scales"):
        mapper(record | {"dataset_source": 2})
    mapper = CustomDatasetMapper(settings(DATALOADER__USE_DIFF_BS_SIZE=False), True)
    with pytest.raises(InputError, match=r"of training set number 3, but there are 2 kinds of annotation"):
        mapper(record | {"dataset_source": 2})
