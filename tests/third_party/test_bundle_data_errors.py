"""Bad data on the bundled detectron2: each message names the file, the id and the field."""

import copy
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json, load_lvis_json, load_sem_seg
from tests.third_party.detectron2.data_files import coco_content, lvis_content, write_images, write_json

GOOD = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [4, 5, 20, 10], "segmentation": [[4, 5, 24, 5, 24, 15]]}


@pytest.fixture
def name():
    yield "data_errors_test"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "data_errors_test" in catalog.list():
            catalog.remove("data_errors_test")


def without(row: dict, key: str) -> dict:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (without(GOOD, "bbox"), "annotation 7 of image 1: 'bbox' is missing"),
        (without(GOOD, "category_id"), "annotation 7 of image 1: 'category_id' is missing"),
        (without(GOOD, "image_id"), "annotation 7 has no 'image_id'"),
        ({**GOOD, "category_id": 12}, "annotation 7 of image 1: category_id 12 is not among the 3 'categories'"),
        ({**GOOD, "bbox": []}, "annotation 7 of image 1: 'bbox' is [], expected [x, y, width, height]"),
        ({**GOOD, "bbox": [1, 2, "a", 4]}, "annotation 7 of image 1: 'bbox' is [1, 2, 'a', 4], expected four numbers"),
        (
            {**GOOD, "bbox": [1, 2, float("nan"), 4]},
            "annotation 7 of image 1: 'bbox' is [1, 2, nan, 4], expected finite",
        ),
        ({**GOOD, "bbox": [1, 2, -3, 4]}, "annotation 7 of image 1: 'bbox' is [1, 2, -3, 4], whose width or height is"),
        ({**GOOD, "ignore": 1}, "annotation 7 of image 1: 'ignore' is 1"),
        ({**GOOD, "segmentation": "x"}, "annotation 7 of image 1: 'segmentation' is a str, expected polygons or RLE"),
        ({**GOOD, "segmentation": [[1, 2, 3, 4, "5", 6]]}, "annotation 7 of image 1: 'segmentation' holds something"),
        (
            {**GOOD, "iscrowd": 1, "segmentation": {"size": [64, 48], "counts": [3072]}},
            "annotation 7 of image 1: the RLE in 'segmentation' has the size [64, 48], its image [48, 64]",
        ),
        (
            {**GOOD, "iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [100, 50]}},
            "annotation 7 of image 1: the counts of the RLE in 'segmentation' add up to 150 pixels",
        ),
        (
            {**GOOD, "segmentation": {"size": [48, 64]}},
            "annotation 7 of image 1: the RLE in 'segmentation' has no 'counts'",
        ),
    ],
)
def test_bad_annotation_is_named(tmp_path, name, annotation, text):
    path = write_json(tmp_path, coco_content([annotation]))
    with pytest.raises(ValueError) as caught:
        load_coco_json(path, "", name)
    assert str(caught.value).startswith(f"{path}: {text}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["file_name", "height", "width"])
def test_bad_image_entry_is_named(tmp_path, key):
    content = coco_content([])
    del content["images"][1][key]
    path = write_json(tmp_path, content)
    with pytest.raises(ValueError, match=f"annotations.json: image 1: '{key}' is missing"):
        load_coco_json(path, "")


def test_bad_categories_and_ids_are_named(tmp_path, name):
    content = coco_content([])
    for change, text in (
        ({"categories": [{"id": 1}]}, "category 1 has no 'name'"),
        ({"categories": [{"name": "cat"}]}, "category number 0 in 'categories' has no 'id'"),
        ({"images": [*content["images"], content["images"][0]]}, "image id 2 is not unique"),
        ({"images": {}}, "'images' is a dict, expected a list"),
        ({"annotations": [GOOD, GOOD]}, "annotation id 7 is not unique"),
    ):
        with pytest.raises(ValueError, match=text):
            load_coco_json(write_json(tmp_path, {**content, **change}), "", name)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[]", "holds a list"), ("{}", "has no 'images'")]
)
def test_file_that_is_no_annotation_file_is_named(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=f"bad.json {message}"):
        load_coco_json(str(tmp_path / "bad.json"), "")
    with pytest.raises(FileNotFoundError, match="absent.json"):
        load_lvis_json(str(tmp_path / "absent.json"), "")


def test_what_is_odd_is_counted_in_the_log(tmp_path, caplog):
    flat = {**GOOD, "segmentation": [[1, 1, 5, 5, 9, 9]]}
    rows = [flat, {**flat, "id": 8}, {**GOOD, "id": 9, "bbox": [1, 1, 0, 5]}, {**GOOD, "id": 10, "image_id": 99}]
    path = write_json(tmp_path, coco_content(rows))
    with caplog.at_level(logging.WARNING):
        load_coco_json(path, "")
    assert f"{path}: 2 annotations have a polygon without area; the first is 7" in caplog.messages
    assert f"{path}: 1 annotations have a box without area; the first is 9" in caplog.messages
    assert f"{path}: 1 of 4 annotations belong to no image" in " ".join(caplog.messages)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"category_id": 1204}, "category_id 1204 is not one of the 1203 categories"),
        ({"bbox": [1, 2, 3, -4]}, "whose width or height is negative"),
        ({"segmentation": [[1, 2, 3, 4]]}, "'segmentation' must be polygons of at least three points"),
        ({"segmentation": None}, "'segmentation' must be polygons of at least three points"),
    ],
)
def test_bad_lvis_annotation_is_named(tmp_path, changes, text):
    content = copy.deepcopy(lvis_content())
    content["annotations"][1].update(changes)
    with pytest.raises(ValueError, match="annotation 12 of image 1: .*" + text.replace("(", r"\(")):
        load_lvis_json(write_json(tmp_path, content), "coco/")


def test_lvis_images_need_an_address(tmp_path):
    content = lvis_content()
    content["images"][0] = without(content["images"][0], "coco_url")
    with pytest.raises(ValueError, match="image 3: 'coco_url' is missing"):
        load_lvis_json(write_json(tmp_path, content), "coco/")
    content["images"][0]["coco_url"] = "a.jpg"
    with pytest.raises(ValueError, match="image 3: 'coco_url' is 'a.jpg'"):
        load_lvis_json(write_json(tmp_path, content), "coco/")


def test_lvis_root_needs_no_slash(tmp_path):
    records = load_lvis_json(write_json(tmp_path, lvis_content()), "coco")
    assert records[0]["file_name"] == "coco/train2017/000000000001.jpg"


def test_label_maps_are_never_paired_with_other_images(tmp_path):
    for folder, stems in {"images": "abc", "labels": "bcd"}.items():
        (tmp_path / folder).mkdir()
        for stem in stems:
            (tmp_path / folder / f"{stem}{'.jpg' if folder == 'images' else '.png'}").touch()
    records = load_sem_seg(str(tmp_path / "labels"), str(tmp_path / "images"))
    assert [Path(record["file_name"]).stem for record in records] == ["b", "c"]
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "z.png").touch()
    with pytest.raises(ValueError, match="no label map .* has the name of an image"):
        load_sem_seg(str(tmp_path / "others"), str(tmp_path / "images"))


def test_unreadable_image_is_named(tmp_path):
    write_images(tmp_path)
    whole = (tmp_path / "1.png").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"no image", b""):
        (tmp_path / "broken.png").write_bytes(content)
        with pytest.raises(utils.CorruptImageError, match="broken.png cannot be read"):
            utils.read_image(str(tmp_path / "broken.png"), format="RGB")
    with pytest.raises(FileNotFoundError, match="absent.png"):
        utils.read_image(str(tmp_path / "absent.png"))


def make_records(folder: Path) -> list[dict]:
    write_images(folder)
    names = ((1, 64, 48), (2, 48, 64))
    return [
        {"file_name": str(folder / f"{n}.png"), "image_id": n, "width": width, "height": height, "annotations": []}
        for n, width, height in names
    ]


def test_corrupt_image_is_skipped_in_training_and_an_error_otherwise(tmp_path, caplog):
    records = make_records(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no image")
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")
    options = {"total_batch_size": 4, "aspect_ratio_grouping": False}
    loader = build_detection_train_loader(records, mapper=mapper, **options)
    with caplog.at_level(logging.WARNING):
        batch = next(iter(loader))
    assert [sample["image_id"] for sample in batch] == [1] * 4
    assert f"{tmp_path / '2.png'} cannot be read" in caplog.text
    assert "(number 1 that this process leaves out)" in caplog.text
    with pytest.raises(utils.CorruptImageError):
        next(iter(build_detection_train_loader(records, mapper=mapper, skip_corrupt_images=False, **options)))
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="not one of the 2 items"):
        next(iter(loader))
    (tmp_path / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match="1.png"):
        next(iter(build_detection_train_loader(records[:1], mapper=mapper, **options)))


def test_image_of_another_size_is_named(tmp_path):
    record = {**make_records(tmp_path)[0], "width": 65}
    with pytest.raises(utils.SizeMismatchError) as caught:
        DatasetMapper(is_train=False, augmentations=[], image_format="RGB")(record)
    assert "image_id 1" in str(caught.value)
    assert "1.png" in str(caught.value)
    assert "is 64x48 (width x height), but its annotations say 65x48" in str(caught.value)


def test_labels_beyond_the_classes_are_named_and_counted(tmp_path):
    record = make_records(tmp_path)[0]
    labels = np.zeros((48, 64), dtype=np.uint8)
    labels[0, :5], labels[1, :3], labels[2, :4] = 21, 200, 255
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {**without(record, "annotations"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 21
    with pytest.raises(
        ValueError, match=r"labels.png holds 21 \(5 pixels\), 200 \(3 pixels\), which are neither one of"
    ):
        DatasetMapper(cfg, is_train=True)(record)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 201
    DatasetMapper(cfg, is_train=True)(record)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"  # which does not train on the map
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    DatasetMapper(cfg, is_train=True)(record)


def test_unusable_label_maps_are_named(tmp_path):
    record = {**without(make_records(tmp_path)[0], "annotations"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")
    Image.new("L", (64, 47)).save(tmp_path / "labels.png")
    with pytest.raises(
        utils.SizeMismatchError, match=r"labels.png is 64x47 \(width x height\), its image .*1.png 64x48"
    ):
        mapper(record)
    Image.new("RGB", (64, 48)).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match="labels.png has 3 channels"):
        mapper(record)
    (tmp_path / "labels.png").write_bytes(b"no image")
    with pytest.raises(utils.CorruptImageError, match="labels.png cannot be read"):
        mapper(record)


def test_label_maps_keep_palette_and_16_bit_values(tmp_path):
    record = {**without(make_records(tmp_path)[0], "annotations"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    values = np.random.RandomState(0).randint(0, 200, (48, 64))
    palette = Image.fromarray(values.astype(np.uint8)).copy()
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "labels.png")
    mapper = DatasetMapper(is_train=True, augmentations=[T.ResizeTransform(48, 64, 96, 128)], image_format="RGB")
    np.testing.assert_array_equal(mapper(record)["sem_seg"].numpy()[::2, ::2], values)
    Image.fromarray((values + 600).astype(np.uint16)).save(tmp_path / "labels.png")
    np.testing.assert_array_equal(mapper(record)["sem_seg"].numpy()[::2, ::2], values + 600)


def test_masks_in_a_part_of_the_annotations_are_an_error(tmp_path):
    record = make_records(tmp_path)[0]
    box = {"bbox": [1, 1, 9, 9], "bbox_mode": 0, "category_id": 0}
    record["annotations"] = [{**box, "segmentation": [[1.0, 1, 9, 1, 9, 9]]}, box]
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True)
    with pytest.raises(ValueError, match="1.png: annotation 1 of 2 has no 'segmentation' though the first one has"):
        mapper(record)


def test_crop_with_masks_takes_images_without_annotations(tmp_path):
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[T.RandomCrop("relative", (0.5, 0.5))],
        image_format="RGB",
        use_instance_mask=True,
        recompute_boxes=True,
    )
    assert len(mapper(make_records(tmp_path)[0])["instances"]) == 0


def test_what_is_left_out_says_so(name):
    import detectron2.data.datasets as datasets
    import detectron2.data.datasets.coco_panoptic as panoptic
    import detectron2.projects.point_rend as point_rend

    for module, what in ((panoptic, "load_coco_panoptic_json"), (point_rend, "add_pointrend_config")):
        with pytest.raises(ImportError, match=f"{what} needs the real detectron2"):
            getattr(module, what)
    for what in ("register_coco_panoptic", "load_voc_instances"):
        with pytest.raises(ImportError, match="needs the real detectron2"):
            getattr(datasets, what)
    with pytest.raises(ImportError, match="MinIoURandomCrop needs the real detectron2"):
        _ = T.MinIoURandomCrop
    with pytest.raises(ImportError, match="needs the real detectron2"):
        utils.transform_keypoint_annotations([], T.NoOpTransform(), (3, 4))
    cfg = get_cfg()
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(ImportError, match="KEYPOINT_ON"):
        DatasetMapper(cfg, is_train=True)
    cfg.MODEL.KEYPOINT_ON, cfg.MODEL.LOAD_PROPOSALS = False, True
    with pytest.raises(ImportError, match="LOAD_PROPOSALS"):
        build_detection_train_loader(cfg)


def test_settings_of_the_loader_are_checked(tmp_path, name):
    records = make_records(tmp_path)
    DatasetCatalog.register(name, lambda: records)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (name,)
    with pytest.raises(ValueError, match="no image of data_errors_test has a usable annotation"):
        build_detection_train_loader(cfg)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.SOLVER.IMS_PER_BATCH = 0
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH"):
        build_detection_train_loader(cfg)
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    with pytest.raises(ValueError, match="DATALOADER.RANDOM_SUBSET_RATIO"):
        build_detection_train_loader(cfg)
    cfg.INPUT.RANDOM_FLIP = "diagonal"
    with pytest.raises(ValueError, match="INPUT.RANDOM_FLIP is 'diagonal'"):
        DatasetMapper(cfg, is_train=True)
