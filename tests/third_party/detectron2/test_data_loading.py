"""From annotations to batches: annotation helpers, the default mapper, data sets, loaders."""

import itertools

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from detectron2.config import get_cfg
from detectron2.data import (
    AspectRatioGroupedDataset,
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    MetadataCatalog,
    ToIterableDataset,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from tests.third_party.detectron2.data_files import SIZES, write_images

SQUARE = [4.0, 5.0, 24.0, 5.0, 24.0, 15.0, 4.0, 15.0]


@pytest.fixture
def names():
    """Two registered data sets: all images, and one without annotations."""
    registered = ("data_loading_test", "data_loading_unlabelled")
    yield registered
    for name in registered:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)


def annotation(**changes) -> dict:
    box = {"bbox": [4.0, 5.0, 20.0, 10.0], "bbox_mode": BoxMode.XYWH_ABS}
    return {**box, "category_id": 1, "segmentation": [list(SQUARE)], "iscrowd": 0, **changes}


def make_records(folder) -> list[dict]:
    write_images(folder)
    return [
        {
            "file_name": str(folder / f"{image_id}.png"),
            "image_id": image_id,
            "width": width,
            "height": height,
            "annotations": [annotation()] if image_id != 3 else [],
        }
        for image_id, (width, height) in SIZES.items()
    ]


def make_config(*overrides):
    cfg = get_cfg()
    cfg.merge_from_list(
        ["INPUT.MIN_SIZE_TRAIN", (20, 24), "INPUT.MAX_SIZE_TRAIN", 40, "INPUT.MIN_SIZE_TEST", 24, *overrides]
    )
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2])
    return cfg


def test_images_are_read_in_each_format(tmp_path):
    write_images(tmp_path)
    path = str(tmp_path / "1.png")
    rgb = utils.read_image(path, format="RGB")
    np.testing.assert_array_equal(utils.read_image(path, format="BGR")[:, :, ::-1], rgb)
    np.testing.assert_array_equal(utils.read_image(path), rgb)
    assert utils.read_image(path, format="L").shape == (48, 64, 1)
    for image_format in ("BGR", "YUV-BT.601", "RGB"):
        image = utils.read_image(path, format=image_format)
        back = utils.convert_image_to_rgb(image, image_format).astype(int)
        assert np.abs(back - rgb).max() <= 2
    assert utils.convert_image_to_rgb(utils.read_image(path, format="L"), "L").shape == (48, 64, 3)


def test_image_of_another_size_is_an_error():
    with pytest.raises(utils.SizeMismatchError, match="a.jpg"):
        utils.check_image_size({"file_name": "a.jpg", "width": 5, "height": 4}, np.zeros((5, 4, 3)))
    record: dict = {"file_name": "a.jpg"}
    utils.check_image_size(record, np.zeros((5, 4, 3)))
    assert (record["width"], record["height"]) == (4, 5)


def test_masks_follow_a_flip_in_each_form():
    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[5:15, 4:24] = 1
    for segmentation in ([list(SQUARE)], mask_util.encode(mask)):
        found = utils.transform_instance_annotations(
            annotation(segmentation=segmentation), [T.HFlipTransform(30)], (20, 30)
        )
        np.testing.assert_allclose(found["bbox"], [6, 5, 26, 15])
        instances = utils.annotations_to_instances([found], (20, 30), mask_format="bitmask")
        np.testing.assert_array_equal(instances.gt_masks.tensor[0].numpy(), mask[:, ::-1].astype(bool))


def test_segmentation_of_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError):
        utils.transform_instance_annotations(annotation(segmentation="mask"), T.NoOpTransform(), (20, 30))
    bad = annotation(segmentation="mask", bbox_mode=BoxMode.XYXY_ABS)
    with pytest.raises(ValueError):
        utils.annotations_to_instances([bad], (20, 30), mask_format="bitmask")
    with pytest.raises(ValueError):
        utils.annotations_to_instances([annotation(segmentation=[[1.0, 2.0]])], (20, 30), mask_format="polygon")


def test_no_annotations_give_no_boxes():
    instances = utils.annotations_to_instances([], (20, 30))
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64
    assert not instances.has("gt_masks")
    assert len(utils.filter_empty_instances(instances)) == 0


def test_empty_instances_are_filtered_by_box_and_mask():
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [1.0, 1.0, 1.0, 5.0], [0.0, 0.0, 5.0, 5.0]])
    masks = BitMasks(torch.stack([torch.ones(8, 8), torch.ones(8, 8), torch.zeros(8, 8)]).bool())
    instances = Instances((8, 8), gt_boxes=Boxes(boxes), gt_masks=masks)
    assert utils.filter_empty_instances(instances, return_mask=True)[1].tolist() == [True, False, False]
    assert len(utils.filter_empty_instances(instances, by_mask=False)) == 2
    assert len(utils.filter_empty_instances(instances, by_box=False)) == 2
    assert len(utils.filter_empty_instances(instances, box_threshold=6, by_mask=False)) == 0


def test_proposals_are_transformed_and_cut():
    record = {
        "proposal_boxes": np.array([[0, 0, 10, 10], [5, 5, 5, 9], [2, 2, 40, 30]], dtype=np.float32),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
        "proposal_objectness_logits": np.array([3, 2, 1], dtype=np.float32),
    }
    utils.transform_proposals(record, (20, 30), T.TransformList([]), proposal_topk=5)
    assert record["proposals"].proposal_boxes.tensor.tolist() == [[0, 0, 10, 10], [2, 2, 30, 20]]
    assert record["proposals"].objectness_logits.tolist() == [3, 1]
    assert "proposal_boxes" not in record


def test_crop_holds_the_centre_of_the_instance():
    np.random.seed(0)
    for _ in range(20):
        crop = utils.gen_crop_transform_with_instance((8, 12), (20, 30), annotation())
        assert crop.x0 <= 14 <= crop.x0 + 12
        assert crop.y0 <= 10 <= crop.y0 + 8
        assert 0 <= crop.x0 <= 18
        assert 0 <= crop.y0 <= 12


def test_augmentations_follow_the_configuration():
    cfg = make_config("INPUT.RANDOM_FLIP", "vertical")
    resize, flip = utils.build_augmentation(cfg, is_train=True)
    assert (resize.short_edge_length, resize.max_size) == ((20, 24), 40)
    assert flip.vertical
    cfg.merge_from_list(["INPUT.RANDOM_FLIP", "none"])
    assert len(utils.build_augmentation(cfg, is_train=True)) == 1
    assert len(utils.build_transform_gen(cfg, is_train=False)) == 1


def test_class_weights_are_powers_of_image_counts():
    weights = utils.get_fed_loss_cls_weights("lvis_v1_train", 0.5)
    counts = [row["image_count"] for row in MetadataCatalog.get("lvis_v1_train").class_image_count]
    torch.testing.assert_close(weights, torch.tensor(counts, dtype=torch.float32).sqrt())


def test_metadata_must_agree(names):
    for name, classes in zip(names, (["a"], ["b"]), strict=True):
        MetadataCatalog.get(name).thing_classes = classes
    with pytest.raises(ValueError):
        utils.check_metadata_consistency("thing_classes", names)
    utils.check_metadata_consistency("stuff_classes", names)


def test_mapper_leaves_its_input_and_drops_crowds(tmp_path):
    record = make_records(tmp_path)[0]
    record["annotations"].append(annotation(iscrowd=1))
    before = repr(record)
    found = DatasetMapper(make_config("MODEL.MASK_ON", True, "INPUT.RANDOM_FLIP", "none"), is_train=True)(record)
    assert repr(record) == before
    assert len(found["instances"]) == 1
    assert isinstance(found["instances"].gt_masks, PolygonMasks)
    assert found["image"].dtype == torch.uint8
    assert "annotations" not in found


def test_mapper_in_inference_has_no_instances(tmp_path):
    found = DatasetMapper(make_config(), is_train=False)(make_records(tmp_path)[1])
    assert found["image"].shape == (3, 32, 24)
    assert (found["height"], found["width"]) == (64, 48)
    assert not {"annotations", "instances"} & found.keys()


def test_mapper_takes_plain_arguments_and_overrides(tmp_path):
    record = make_records(tmp_path)[0]
    plain = DatasetMapper(is_train=True, augmentations=[T.HFlipTransform(64)], image_format="RGB")
    found = plain(record)
    expected = utils.read_image(record["file_name"], format="RGB")[:, ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(found["image"].numpy(), expected)
    assert not found["instances"].has("gt_masks")
    override = DatasetMapper(make_config(), is_train=True, augmentations=[T.Resize((10, 12))])
    assert override(record)["image"].shape == (3, 10, 12)


def test_mapper_recomputes_boxes_after_a_crop(tmp_path):
    record = make_records(tmp_path)[0]
    record["annotations"] = [annotation(segmentation=[[4.0, 5.0, 24.0, 5.0, 4.0, 15.0]])]
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[T.CropTransform(14, 0, 40, 40)],
        image_format="RGB",
        use_instance_mask=True,
        recompute_boxes=True,
    )
    np.testing.assert_allclose(mapper(record)["instances"].gt_boxes.tensor, [[0.0, 5.0, 10.0, 10.0]], atol=1e-5)


def test_mapper_reads_label_maps(tmp_path):
    record = make_records(tmp_path)[0]
    labels = np.random.RandomState(0).randint(0, 5, (48, 64), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    found = DatasetMapper(is_train=True, augmentations=[T.HFlipTransform(64)], image_format="RGB")(record)
    assert found["sem_seg"].dtype == torch.int64
    np.testing.assert_array_equal(found["sem_seg"].numpy(), labels[:, ::-1])
    assert "sem_seg_file_name" not in found


@pytest.mark.parametrize("serialize", [True, False])
def test_list_gives_fresh_objects(serialize):
    dataset = DatasetFromList([{"a": [1]}, {"b": [2, 3]}, {}], copy=True, serialize=serialize)
    assert len(dataset) == 3
    dataset[1]["b"].append(4)
    assert [dataset[index] for index in range(3)] == [{"a": [1]}, {"b": [2, 3]}, {}]


def test_items_mapped_to_nothing_are_replaced():
    dataset = MapDataset(DatasetFromList(list(range(10))), lambda item: item if item % 2 else None)
    assert all(dataset[index] % 2 for index in range(10))
    assert dataset[3] == 3


def test_mapped_stream_leaves_out_nothing_else():
    stream = ToIterableDataset(DatasetFromList(list(range(6))), InferenceSampler(6))
    mapped = MapDataset(stream, lambda item: item if item % 2 else None)
    assert list(mapped) == [1, 3, 5]


def double(item: int) -> int:
    return 2 * item


def test_workers_share_a_stream_without_loss():
    dataset = MapDataset(DatasetFromList(list(range(23))), double)
    for workers in (0, 2):
        loader = build_batch_data_loader(dataset, InferenceSampler(23), 4, num_workers=workers, drop_last=False)
        batches = list(loader)
        assert [item for batch in batches for item in batch] == [2 * item for item in range(23)]
        assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert sum(len(batch) for batch in build_batch_data_loader(dataset, InferenceSampler(23), 4)) == 20


def test_groups_are_of_one_orientation():
    sizes = [(4, 3), (3, 4), (5, 5), (6, 2), (1, 2), (9, 8)]
    records = [{"width": width, "height": height} for width, height in sizes]
    batches = list(AspectRatioGroupedDataset(records, 2))
    for batch in batches:
        assert len({record["width"] > record["height"] for record in batch}) == 1
    dataset = DatasetFromList(records)
    loader = build_batch_data_loader(dataset, TrainingSampler(6, seed=0), 2, aspect_ratio_grouping=True)
    for batch in itertools.islice(loader, 12):
        assert len(batch) == 2
        assert len({record["width"] > record["height"] for record in batch}) == 1


@pytest.mark.parametrize("grouping", [False, True])
def test_samples_pass_as_they_are(grouping):
    dataset = DatasetFromList([{"width": 4, "height": 3, "array": np.zeros(2), "name": "a"}])
    loader = build_batch_data_loader(dataset, TrainingSampler(1, seed=0), 2, aspect_ratio_grouping=grouping)
    batch = next(iter(loader))
    assert isinstance(batch, list)
    assert isinstance(batch[0]["array"], np.ndarray)
    stream = ToIterableDataset(dataset, TrainingSampler(1, seed=0))
    batch = next(iter(build_batch_data_loader(stream, None, 2, aspect_ratio_grouping=grouping)))
    assert [type(sample["array"]) for sample in batch] == [np.ndarray] * 2


def test_collate_function_is_used():
    dataset = DatasetFromList(list(range(8)))
    assert list(build_batch_data_loader(dataset, InferenceSampler(8), 4, collate_fn=sum)) == [6, 22]


def test_data_sets_are_joined_and_filtered(tmp_path, names):
    records = make_records(tmp_path)
    for name in names:
        DatasetCatalog.register(name, lambda: make_records(tmp_path))
        MetadataCatalog.get(name).thing_classes = ["cat", "dog"]
    assert len(get_detection_dataset_dicts(names[0], filter_empty=False)) == len(records)
    assert [record["image_id"] for record in get_detection_dataset_dicts(names)] == [1, 2, 1, 2]


def test_data_sets_without_images_or_names_are_errors(names):
    DatasetCatalog.register(names[0], list)
    with pytest.raises(AssertionError, match=names[0]):
        get_detection_dataset_dicts(names[0])
    with pytest.raises(AssertionError):
        get_detection_dataset_dicts([])
    with pytest.raises(KeyError):
        get_detection_dataset_dicts("no such data set")


def test_classes_beyond_the_names_are_an_error(tmp_path, names):
    DatasetCatalog.register(names[0], lambda: make_records(tmp_path))
    MetadataCatalog.get(names[0]).thing_classes = ["cat"]
    with pytest.raises(AssertionError):
        get_detection_dataset_dicts(names[0])


def test_train_loader_from_a_configuration(tmp_path, names):
    DatasetCatalog.register(names[0], lambda: make_records(tmp_path))
    cfg = make_config("DATASETS.TRAIN", (names[0],))
    for sampler in ("TrainingSampler", "RepeatFactorTrainingSampler"):
        cfg.merge_from_list(["DATALOADER.SAMPLER_TRAIN", sampler])
        batches = list(itertools.islice(build_detection_train_loader(cfg), 4))
        assert [len(batch) for batch in batches] == [2] * 4
        assert {sample["image_id"] for batch in batches for sample in batch} == {1, 2}
        assert all("instances" in sample for batch in batches for sample in batch)
    cfg.merge_from_list(["DATALOADER.SAMPLER_TRAIN", "NoSuchSampler"])
    with pytest.raises(ValueError, match="NoSuchSampler"):
        build_detection_train_loader(cfg)


def test_train_loader_from_arguments(tmp_path):
    records = make_records(tmp_path)
    loader = build_detection_train_loader(
        records, mapper=lambda record: record, total_batch_size=3, aspect_ratio_grouping=False
    )
    seen = [record["image_id"] for batch in itertools.islice(loader, 2) for record in batch]
    assert sorted(seen) == [1, 1, 2, 2, 3, 3]


def test_test_loader_keeps_order_and_all_images(tmp_path, names):
    DatasetCatalog.register(names[0], lambda: make_records(tmp_path))
    cfg = make_config()
    loader = build_detection_test_loader(cfg, names[0])
    assert [sample["image_id"] for batch in loader for sample in batch] == [1, 2, 3]
    assert len(loader) == 3
    loader = build_detection_test_loader(make_records(tmp_path), mapper=lambda record: record["image_id"], batch_size=2)
    assert list(loader) == [[1, 2], [3]]
