"""The bundled evaluators' own ways: predictions on disk, blocks of categories, clear errors, several processes."""

import json
import os
import pickle
import signal

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.evaluation import category_blocks as blocks
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from detectron2.evaluation.prediction_files import DetectionFiles, JsonLines
from detectron2.evaluation.result_files import write_json_list, write_torch_list
from tests.third_party.detectron2.evaluation_data import new_name, register, same_metrics
from tools.benchmarks._synthetic_detections import SyntheticWorld, pycocotools_metrics, read_coco


def _world(federated=False, masks=True, images=12, **options):
    return SyntheticWorld(images, 8, 20, federated=federated, masks=masks, size=(120, 160), **options).draw()


def _evaluator(world, folder, federated=False, **options):
    ids = {index + 1: index for index in range(len(world.annotations["categories"]))}
    name = register(world.annotations, folder, thing_dataset_id_to_contiguous_id=ids)
    return (LVISEvaluator if federated else COCOEvaluator)(name, **{"distributed": False, **options})


def _process(evaluator, world, image_ids=None):
    evaluator.reset()
    for image_id in world.detections if image_ids is None else image_ids:
        evaluator.process([{"image_id": image_id}], [{"instances": world.detections[image_id]}])
    return evaluator


# Files


def test_predictions_come_back_from_disk_as_they_were():
    world = _world()
    expected = [
        {"image_id": image_id, "instances": instances_to_coco_json(instances, image_id)}
        for image_id, instances in world.detections.items()
    ]
    expected.insert(3, {"image_id": "a name", "instances": []})
    expected.append(
        {"image_id": 99, "instances": [{"image_id": 99, "category_id": 1, "score": 0.5, "keypoints": [1.5]}]}
    )
    files = DetectionFiles()
    files.extend(expected)
    assert len(files) == len(expected)
    assert list(files) == expected
    assert pickle.loads(pickle.dumps(files)) == expected


def test_json_lines_come_back_as_they_were():
    lines = JsonLines()
    items = [{"a": 1, "b": [1.5, "x"]}, {"c": None}]
    lines.extend(items[:1])
    lines.append(items[1])
    assert list(lines) == items == pickle.loads(pickle.dumps(lines))
    assert len(lines) == 2


def test_files_go_with_their_list():
    files = DetectionFiles()
    folder = files._folder.path
    files.append({"image_id": 1, "instances": []})
    assert folder.exists()
    del files
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_files_of_a_killed_process_go_with_the_next_evaluation(tmp_path):
    child = os.fork()
    if not child:
        files = [DetectionFiles(str(tmp_path)), DetectionFiles(str(tmp_path))]
        files[0].append({"image_id": 1, "instances": []})
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    left = set(tmp_path.iterdir())
    assert len(left) == 2
    alive = DetectionFiles(str(tmp_path))
    assert left.isdisjoint(tmp_path.iterdir())
    (tmp_path / "predictions_rank1_of_mine").mkdir()  # without a token
    other = DetectionFiles(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 3
    assert len(alive) == len(other) == 0


@pytest.mark.parametrize("items", [[], [1], [{"a": [1, 2.5, "x"]}, {"a": ["x", {"b": None}]}, 3]])
def test_lists_are_written_item_by_item(items, tmp_path):
    write_json_list(str(tmp_path / "list.json"), iter(items))
    assert json.loads((tmp_path / "list.json").read_text()) == items
    write_torch_list(str(tmp_path / "list.pth"), iter(items))
    assert torch.load(tmp_path / "list.pth", weights_only=True) == items


def test_an_interrupted_list_leaves_no_file(tmp_path):
    def broken():
        yield 1
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_json_list(str(tmp_path / "list.json"), broken())
    assert list(tmp_path.iterdir()) == []


def test_a_plain_list_of_predictions_is_evaluated_too(tmp_path):
    """Subclasses written for the real detectron2 may keep one."""
    world = _world(masks=False)
    evaluator = _process(_evaluator(world, tmp_path), world)
    expected = evaluator.evaluate()
    evaluator._predictions = list(evaluator._predictions)
    assert evaluator.evaluate() == expected


# Blocks


@pytest.mark.parametrize("federated", [False, True])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_blocks_of_any_size_give_the_same(federated, task, tmp_path, monkeypatch):
    world = _world(federated)
    evaluator = _process(_evaluator(world, tmp_path, federated, tasks=(task,)), world)
    results = []
    for pairs in (1, 30, 10**9):
        monkeypatch.setattr(blocks, "_MAX_PAIRS", pairs)
        results.append(evaluator.evaluate()[task])
    assert results[0] == results[1] == results[2]


def test_chosen_images_are_evaluated_as_if_alone(tmp_path):
    world = _world(images=10)
    chosen = [2, 3, 7]
    results = _process(_evaluator(world, tmp_path), world).evaluate(img_ids=chosen)
    world.annotations["images"] = [image for image in world.annotations["images"] if image["id"] in chosen]
    alone = _process(_evaluator(world, tmp_path), world, image_ids=chosen).evaluate()
    same_metrics(results, alone, 1e-12)


def test_the_compiled_class_has_its_published_name(tmp_path):
    world = _world(masks=False)
    (tmp_path / "gt.json").write_text(json.dumps(world.annotations))
    api = read_coco(str(tmp_path / "gt.json"))
    detections = [
        {**item, "category_id": item["category_id"] + 1}
        for image_id, instances in world.detections.items()
        for item in instances_to_coco_json(instances, image_id)
    ]
    evaluation = COCOeval_opt(api, api.loadRes([dict(item) for item in detections]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = pycocotools_metrics(api, detections, "bbox")
    assert evaluation.stats[0] * 100 == pytest.approx(expected["AP"])


# Several processes


def _worker(rank, world_size, folder, shared, federated, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    if not shared:  # as on another machine: its own folder for temporary files, which the others do not see
        import detectron2.evaluation.prediction_files as module

        module._is_folder = lambda path, token: f"_rank{rank}_" in path.name
    world = _world(federated, images=6)
    ids = sorted(world.detections)
    shards = min(world_size, 3)  # of four processes the last one has no image, hence no detection
    evaluator = _evaluator(
        world, folder / f"rank{rank}", federated, distributed=True, output_dir=str(folder / "out") if shared else None
    )
    _process(evaluator, world, ids[rank::shards] if rank < shards else [])
    results[rank] = evaluator.evaluate()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("processes", "shared"), [(2, True), (2, False), (4, True)])
@pytest.mark.parametrize("federated", [True, False])
def test_many_processes_give_the_results_of_one(processes, shared, federated, tmp_path):
    world = _world(federated, images=6)
    expected = _process(_evaluator(world, tmp_path, federated), world).evaluate()
    with mp.get_context("fork").Manager() as manager:
        shared_results = manager.dict()
        arguments = (processes, tmp_path, shared, federated, shared_results)
        mp.start_processes(_worker, args=arguments, nprocs=processes, start_method="fork")
        results = dict(shared_results)
    same_metrics(results[0], expected, 1e-9)
    assert results[1] == (None if federated else {})
    if shared:
        name = "lvis_instances_results.json" if federated else "coco_instances_results.json"
        assert len(json.loads((tmp_path / "out" / name).read_text())) == 6 * 20
        assert {path.name for path in (tmp_path / "out").iterdir()} == {name, "instances_predictions.pth"}


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["annotations"][2].pop("area"), "annotation 3 has no 'area'"),
        (lambda a: a["annotations"][2].update(id=1), "two annotations have the id 1"),
        (lambda a: a["images"][0].pop("neg_category_ids"), "image 1 has no 'neg_category_ids'"),
        (lambda a: a["categories"][1].pop("frequency"), "category 2 has frequency ''"),
    ],
)
def test_bad_annotations_are_named(change, message, tmp_path):
    world = _world(federated=True)
    change(world.annotations)
    with pytest.raises(ValueError, match=message):
        _evaluator(world, tmp_path, federated=True)


def test_missing_segmentations_are_named(tmp_path):
    world = _world()
    del world.annotations["annotations"][4]["segmentation"]
    with pytest.raises(ValueError, match="annotation 5 has no segmentation"):
        _process(_evaluator(world, tmp_path), world).evaluate()
    world.detections[3].remove("pred_masks_rle")
    with pytest.raises(ValueError, match="has no mask"):
        _process(_evaluator(_world(), tmp_path), world).evaluate()


def test_unknown_images_are_named(tmp_path):
    world = _world()
    world.detections[777] = world.detections.pop(2)
    with pytest.raises(ValueError, match="1 of 12 image ids are not in .*the first is 777"):
        _process(_evaluator(world, tmp_path), world).evaluate()


def test_classes_beyond_the_data_set_are_named(tmp_path):
    world = _world()
    world.detections[1].pred_classes[0] = 8
    with pytest.raises(ValueError, match="class 8, but data set .* has 8 classes"):
        _process(_evaluator(world, tmp_path), world).evaluate()


def test_bad_arguments_are_named(tmp_path):
    world = _world()
    with pytest.raises(ImportError, match="keypoints needs the real detectron2"):
        _evaluator(world, tmp_path, tasks=("keypoints",))
    with pytest.raises(ValueError, match="'box' is no task"):
        _evaluator(world, tmp_path, tasks=("box",))
    with pytest.raises(ValueError, match="at least 1"):
        _evaluator(world, tmp_path, max_dets_per_image=0)
    name = register(world.annotations, tmp_path, thing_dataset_id_to_contiguous_id={1: 0, 2: 2})
    with pytest.raises(ValueError, match="must map to 0 … 1"):
        _process(COCOEvaluator(name, distributed=False), world).evaluate()
    name = new_name()
    DatasetCatalog.register(name, list)
    with pytest.raises(ValueError, match="output_dir"):
        COCOEvaluator(name)


@pytest.mark.parametrize("kind", [COCOPanopticEvaluator, CityscapesInstanceEvaluator, PascalVOCDetectionEvaluator])
def test_evaluators_left_out_say_who_has_them(kind):
    with pytest.raises(ImportError, match=f"{kind.__name__} needs the real detectron2"):
        kind("data set")


# Semantic segmentation


def _label_map(folder, labels, classes=3, **metadata):
    Image.fromarray(labels).save(folder / "gt.png")
    name = new_name()
    DatasetCatalog.register(name, lambda: [{"file_name": "a.jpg", "sem_seg_file_name": str(folder / "gt.png")}])
    MetadataCatalog.get(name).set(stuff_classes=[f"k{i}" for i in range(classes)], ignore_label=255, **metadata)
    return name


def _scores(labels, classes=3):
    return torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)), classes).permute(2, 0, 1).float()


def test_labels_that_are_no_class_are_counted_and_named(tmp_path):
    labels = np.zeros((4, 5), dtype=np.uint8)
    labels[0, :3] = 7
    evaluator = SemSegEvaluator(_label_map(tmp_path, labels), distributed=False)
    evaluator.reset()
    with pytest.raises(ValueError, match=r"gt.png has 3 pixels with labels \[7\]"):
        evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": torch.zeros(3, 4, 5)}])


def test_wrong_sizes_files_and_classes_are_named(tmp_path):
    evaluator = SemSegEvaluator(_label_map(tmp_path, np.zeros((4, 5), dtype=np.uint8)), distributed=False)
    evaluator.reset()
    with pytest.raises(ValueError, match=r"gt.png has the size \(height, width\) \(4, 5\)"):
        evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": torch.zeros(3, 4, 6)}])
    with pytest.raises(ValueError, match="no label map for b.jpg"):
        evaluator.process([{"file_name": "b.jpg"}], [{"sem_seg": torch.zeros(3, 4, 5)}])
    with pytest.raises(ValueError, match="predicts class 4"):
        scores = torch.zeros(5, 4, 5)
        scores[4] = 1
        evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": scores}])


def test_cityscapes_maps_are_written_with_its_ids(tmp_path):
    labels = np.array([[0, 18, 255], [1, 1, 0]], dtype=np.uint8)
    name = _label_map(tmp_path, labels, classes=19)
    evaluator = CityscapesSemSegEvaluator(name, distributed=False, output_dir=str(tmp_path / "out"))
    evaluator.reset()
    evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": _scores(np.where(labels == 255, 0, labels), 19)}])
    results = evaluator.evaluate()["sem_seg"]
    assert results["IoU"] == results["mIoU"] == pytest.approx(100)
    written = np.array(Image.open(tmp_path / "out" / "a_pred.png"))
    assert written.tolist() == [[7, 33, 7], [8, 8, 7]]


def _count_pixels(rank, world_size, folder, name, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    evaluator = SemSegEvaluator(name, output_dir=str(folder / "out"))
    evaluator.reset()
    scores = torch.zeros(3, 4, 5)
    scores[rank] = 1
    evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": scores}])
    results[rank] = evaluator.evaluate()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_counts_and_maps_of_two_processes_are_joined(tmp_path):
    (tmp_path / "out").mkdir()
    name = _label_map(tmp_path, np.zeros((4, 5), dtype=np.uint8))
    with mp.get_context("fork").Manager() as manager:
        results = manager.dict()
        mp.start_processes(_count_pixels, args=(2, tmp_path, name, results), nprocs=2, start_method="fork")
        results = dict(results)
    assert results[1] is None
    assert results[0]["sem_seg"]["pACC"] == pytest.approx(50)
    written = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert [item["category_id"] for item in written] == [0, 1]
