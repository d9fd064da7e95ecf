"""``DefaultTrainer``, ``DefaultPredictor`` and what commands start with, on a model of a few numbers."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import (
    DefaultPredictor,
    DefaultTrainer,
    default_argument_parser,
    default_setup,
    default_writers,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import EventWriter

NUM_IMAGES = 6


@META_ARCH_REGISTRY.register()
class MeanOfImage(nn.Module):
    """Learns a factor from the mean of an image to its number; outputs what it is given."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        if not self.training:
            return [{"factor": self.factor.detach(), **sample} for sample in batch]
        found = self.factor * torch.stack([sample["image"].mean() for sample in batch])
        return {"loss": (found - torch.tensor([float(sample["image_id"]) for sample in batch])).square().mean()}


class CountImages(DatasetEvaluator):
    def reset(self) -> None:
        self.count = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self.count += len(outputs)

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"count": {"images": float(self.count)}}


def to_sample(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "image": torch.full((3, 4, 4), 0.1 * record["image_id"])}


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=to_sample)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name, mapper=to_sample)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return CountImages()


@pytest.fixture
def cfg(tmp_path: Path) -> Iterator[CfgNode]:
    names = ["toy_train", "toy_test"]
    for name in names:
        DatasetCatalog.register(
            name, lambda: [{"image_id": i, "width": 4, "height": 4, "file_name": str(i)} for i in range(NUM_IMAGES)]
        )
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.MODEL.META_ARCHITECTURE = "MeanOfImage"
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = ("toy_train",)
    cfg.DATASETS.TEST = ("toy_test",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 4
    cfg.SOLVER.STEPS = (3,)
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.TEST.EVAL_PERIOD = 2
    cfg.SEED = 1
    yield cfg
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def test_training_evaluates_saves_and_resumes(cfg: CfgNode) -> None:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.train() is None
    output = Path(cfg.OUTPUT_DIR)
    assert {file.name for file in output.glob("model_*")} == {
        "model_0000001.pth",
        "model_0000003.pth",
        "model_final.pth",
    }
    assert '"count/images": 6.0' in (output / "metrics.json").read_text()
    assert [iteration for _, iteration in trainer.storage.history("count/images").values()] == [1, 4]
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(cfg.SOLVER.BASE_LR * 0.1)

    cfg.SOLVER.MAX_ITER = 6
    longer = Trainer(cfg)
    longer.resume_or_load(resume=True)
    assert longer.start_iter == 4
    assert torch.equal(longer.model.factor, trainer.model.factor)
    assert longer.scheduler.last_epoch == 4
    longer.train()
    assert longer.iter == 6
    assert (output / "model_0000005.pth").exists()
    assert not torch.equal(longer.model.factor, trainer.model.factor)


def test_hooks_come_in_their_order(cfg: CfgNode) -> None:
    names = [type(hook).__name__ for hook in Trainer(cfg).build_hooks() if hook is not None]
    assert names == ["IterationTimer", "LRScheduler", "PeriodicCheckpointer", "EvalHook", "PeriodicWriter"]


def test_parts_forward_to_the_inner_trainer(cfg: CfgNode) -> None:
    trainer = Trainer(cfg)
    model, loader, optimizer = MeanOfImage(cfg), [], torch.optim.SGD([torch.zeros(1)], lr=1.0)
    trainer.model, trainer.data_loader, trainer.optimizer = model, loader, optimizer
    assert (trainer._trainer.model, trainer._trainer.optimizer) == (model, optimizer)
    assert (trainer.model, trainer.optimizer) == (model, optimizer)
    assert trainer.data_loader is loader


def test_evaluation_of_one_data_set_and_of_several(cfg: CfgNode) -> None:
    model = MeanOfImage(cfg)
    assert Trainer.test(cfg, model) == {"count": {"images": 6.0}}
    assert Trainer.test(cfg, model, CountImages()) == {"count": {"images": 6.0}}
    cfg.DATASETS.TEST = ("toy_test", "toy_train")
    assert Trainer.test(cfg, model) == {name: {"count": {"images": 6.0}} for name in ("toy_test", "toy_train")}
    with pytest.raises((AssertionError, ValueError), match="2"):
        Trainer.test(cfg, model, [CountImages()])


def test_without_an_evaluator_the_result_is_empty(cfg: CfgNode) -> None:
    class NoEvaluator(Trainer):
        build_evaluator = DefaultTrainer.build_evaluator

    assert NoEvaluator.test(cfg, MeanOfImage(cfg)) == {}
    with pytest.raises(NotImplementedError, match="build_evaluator"):
        NoEvaluator.build_evaluator(cfg, "toy_test")


def test_expected_results_are_returned_and_checked(cfg: CfgNode) -> None:
    cfg.TEST.EXPECTED_RESULTS = [["count", "images", 6.0, 0.1]]
    assert Trainer(cfg).train() == {"count": {"images": 6.0}}
    cfg.TEST.EXPECTED_RESULTS = [["count", "images", 9.0, 0.1]]
    with pytest.raises(SystemExit):
        Trainer(cfg).train()


def test_scaling_keeps_the_epochs() -> None:
    cfg = get_cfg()
    assert DefaultTrainer.auto_scale_workers(cfg, 4) is cfg
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 2
    cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, 4)
    assert scaled.is_frozen()
    assert scaled.SOLVER.IMS_PER_BATCH * scaled.SOLVER.MAX_ITER == cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.MAX_ITER
    assert scaled.SOLVER.BASE_LR == 2 * cfg.SOLVER.BASE_LR
    assert cfg.SOLVER.REFERENCE_WORLD_SIZE == 2
    assert DefaultTrainer.auto_scale_workers(scaled, 4) is scaled


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_predictor_resizes_and_orders_channels(cfg: CfgNode, order: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({"model": {"factor": torch.tensor([3.0])}}, weights)
    cfg.MODEL.WEIGHTS, cfg.INPUT.FORMAT = str(weights), order
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 8, 100
    predictor = DefaultPredictor(cfg)
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[..., 0] = 200  # blue
    output = predictor(image)
    assert (output["height"], output["width"]) == (4, 6)
    assert output["image"].shape == (3, 8, 12)
    assert output["image"].dtype == torch.float32
    means = output["image"].mean(dim=(1, 2)).tolist()
    assert means == ([200, 0, 0] if order == "BGR" else [0, 0, 200])
    assert output["factor"].item() == 3.0
    assert not predictor.model.training
    assert predictor.metadata is MetadataCatalog.get("toy_test")


def test_predictor_without_test_data_has_no_metadata(cfg: CfgNode) -> None:
    cfg.DATASETS.TEST = ()
    assert not hasattr(DefaultPredictor(cfg), "metadata")


def test_arguments() -> None:
    parser = default_argument_parser()
    args = parser.parse_args([])
    assert (args.config_file, args.resume, args.eval_only) == ("", False, False)
    assert (args.num_gpus, args.num_machines, args.machine_rank, args.opts) == (1, 1, 0, [])
    port = int(args.dist_url.removeprefix("tcp://127.0.0.1:"))
    assert 49152 <= port <= 65535
    args = parser.parse_args("--num-gpus 2 --resume --config-file a.yaml MODEL.WEIGHTS w.pth --eval-only".split())
    assert args.opts == ["MODEL.WEIGHTS", "w.pth", "--eval-only"]
    assert (args.num_gpus, args.resume, args.config_file) == (2, True, "a.yaml")


def test_setup_writes_config_and_log_and_seeds(cfg: CfgNode, tmp_path: Path) -> None:
    file = tmp_path / "given.yaml"
    file.write_text("SOLVER:\n  MAX_ITER: 7\n")
    cfg.merge_from_file(str(file))
    args = default_argument_parser().parse_args(["--config-file", str(file)])
    numbers = []
    for _ in range(2):
        default_setup(cfg, args)
        numbers.append((torch.rand(()).item(), np.random.rand()))
    assert numbers[0] == numbers[1]
    again = get_cfg()
    again.merge_from_file(str(Path(cfg.OUTPUT_DIR) / "config.yaml"))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    for name in ("detectron2", "fvcore"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()
    log = (Path(cfg.OUTPUT_DIR) / "log.txt").read_text()
    for expected in ("Rank of current process: 0. World size: 1", "MAX_ITER: 7", "Full config saved to"):
        assert expected in log


def test_writers_of_a_training(tmp_path: Path) -> None:
    writers = default_writers(str(tmp_path / "new"), 10)
    assert all(isinstance(writer, EventWriter) for writer in writers)
    assert (tmp_path / "new" / "metrics.json").exists()
    for writer in writers:
        writer.close()


def test_gradients_are_clipped_in_training(cfg: CfgNode) -> None:
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1e-3
    cfg.SOLVER.MAX_ITER = 1
    cfg.DATASETS.TEST = ()
    trainer = Trainer(cfg)
    trainer.train()
    moved: Tensor = (trainer.model.factor - 1).abs()
    assert 0 < moved.item() <= 1e-3 * cfg.SOLVER.BASE_LR + 2e-7  # float32
