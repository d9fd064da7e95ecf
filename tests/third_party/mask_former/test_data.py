"""The mapper of semantic segmentation."""

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from mask_former import MaskFormerSemanticDatasetMapper
from mask_former.data.label_maps import LabelMapError, check_labels, classes_of
from tests.segmentation_recipes import registered_data_sets, segmentation_config


@pytest.fixture
def record(tmp_path):
    """An image of 6 x 8 pixels with the classes 4 and 2; the last column is ignored."""
    labels = np.full((6, 8), 4, np.uint8)
    labels[:, :3], labels[:, 7] = 2, 255
    Image.fromarray(labels).save(tmp_path / "label.png")
    pixels = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "label.png"), "extra": [1]}


def make(**values):
    arguments = {"augmentations": [], "image_format": "RGB", "ignore_label": 255, "size_divisibility": -1}
    return MaskFormerSemanticDatasetMapper(**{**arguments, **values})


def test_one_mask_per_class(record):
    sample = make()(record)
    assert sample["instances"].gt_classes.tolist() == [2, 4]
    assert sample["instances"].gt_masks.dtype == torch.bool
    assert sample["instances"].gt_masks.sum((1, 2)).tolist() == [18, 24]
    assert sample["image"].dtype == torch.uint8 and sample["sem_seg"].dtype == torch.int64
    assert (sample["height"], sample["width"], sample["extra"]) == (6, 8, [1])
    assert "sem_seg_file_name" in record and "sem_seg_file_name" not in sample


def test_bgr_swaps_channels(record):
    assert torch.equal(make()(record)["image"], make(image_format="BGR")(record)["image"].flip(0))


def test_palettes_hold_labels(record):
    image = Image.open(record["sem_seg_file_name"])
    image.putpalette([(5 * i) % 256 for i in range(768)])
    image.save(record["sem_seg_file_name"])
    assert make()(record)["instances"].gt_classes.tolist() == [2, 4]


def test_sixteen_bits(record, tmp_path):
    record["sem_seg_file_name"] = str(tmp_path / "label.tif")
    labels = np.full((6, 8), 65535, np.uint16)
    labels[0] = 846
    Image.fromarray(labels).save(record["sem_seg_file_name"])
    sample = make(ignore_label=65535, num_classes=847, size_divisibility=10)(record)
    assert sample["instances"].gt_classes.tolist() == [846]
    assert sample["sem_seg"].shape == (10, 10) and (sample["sem_seg"][1:] == 65535).all()


def test_padding_is_grey_and_ignored_and_only_for_training(record):
    sample = make(size_divisibility=9)(record)
    plain = make()(record)
    assert sample["image"].shape == (3, 9, 9) and sample["instances"].image_size == (9, 9)
    assert torch.equal(sample["image"][:, :6, :8], plain["image"])
    assert (sample["image"][:, 6:] == 128).all() and (sample["image"][:, :, 8] == 128).all()
    assert (sample["sem_seg"][6:] == 255).all() and sample["instances"].gt_masks.sum() == 42
    assert make(size_divisibility=9, is_train=False)(record)["image"].shape == (3, 6, 8)


def test_an_image_without_any_label_has_no_masks(record):
    Image.new("L", (8, 6), 255).save(record["sem_seg_file_name"])
    instances = make()(record)["instances"]
    assert instances.gt_classes.shape == (0,) and instances.gt_masks.shape == (0, 6, 8)


def test_image_and_labels_are_flipped_together(record):
    sample, plain = make(augmentations=[T.RandomFlip(1.0)])(record), make()(record)
    assert torch.equal(sample["image"], plain["image"].flip(2))
    assert torch.equal(sample["sem_seg"], plain["sem_seg"].flip(1))


@pytest.mark.parametrize(
    ("change", "values", "message"),
    [
        ({"annotations": []}, {}, "image.png has annotations of objects"),
        ({"sem_seg_file_name": None}, {}, "image.png has no 'sem_seg_file_name'"),
        ({}, {"num_classes": 4}, "label.png holds 4, expected the labels 0 to 3 of the 4 classes or the ignored 255"),
        ({}, {"size_divisibility": 7}, "image.png is 8x6 .* larger than the 7 pixels of INPUT.SIZE_DIVISIBILITY"),
    ],
)
def test_records_that_cannot_be_used(record, change, values, message):
    record = {key: value for key, value in (record | change).items() if value is not None}
    with pytest.raises(LabelMapError, match=message):
        make(**values)(record)


@pytest.mark.parametrize(
    ("mode", "size", "message"), [("RGB", (8, 6), "has 3 channels"), ("L", (7, 6), "is 7x6 .*, its image 8x6")]
)
def test_label_maps_that_do_not_fit(record, mode, size, message):
    Image.new(mode, size).save(record["sem_seg_file_name"])
    with pytest.raises(LabelMapError, match=message):
        make()(record)


def test_wrong_labels_are_listed():
    labels = np.arange(12).reshape(3, 4)
    check_labels(labels, None, 255, "a.png")
    check_labels(labels, 11, 11, "a.png")
    check_labels(labels[:0], 2, 255, "a.png")
    with pytest.raises(LabelMapError, match="a.png holds 2, 3, 4, 5, 6 and more, expected the labels 0 to 1"):
        check_labels(labels, 2, 255, "a.png")


def test_classes_of_a_map_ascend_without_the_ignored_one():
    labels = torch.tensor([[7, 3, 255], [3, 0, 255]])
    assert classes_of(labels, 255).tolist() == [0, 3, 7]
    assert classes_of(labels, 0).tolist() == [3, 7, 255]
    assert classes_of(labels[:0], 255).tolist() == []


def test_crops_larger_than_the_padded_size_are_refused():
    cfg = segmentation_config()
    cfg.DATASETS.TRAIN = ("mapper_made_up",)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", (64, 65)
    cfg.INPUT.SIZE_DIVISIBILITY = 64
    with registered_data_sets({"mapper_made_up": {"stuff_classes": ["a"]}}):
        MetadataCatalog.get("mapper_made_up").ignore_label = 255
        with pytest.raises(ValueError, match=r"INPUT.CROP.SIZE is \(64, 65\), larger than the 64 pixels"):
            MaskFormerSemanticDatasetMapper(cfg, True)
        cfg.INPUT.SIZE_DIVISIBILITY = 65
        assert MaskFormerSemanticDatasetMapper(cfg, True).num_classes == 1
