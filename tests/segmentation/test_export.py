"""The segmenter as a graph: the scores of the model, from an image, class embeddings and flags of seen classes."""

from pathlib import Path

import pytest
import torch

import segmentation
from detectron2.config import CfgNode
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.errors import InputError
from prompt_pretrain.model_export import Exportable, difference, export_onnx, export_program, onnx_outputs
from segmentation.api import Segmenter
from segmentation.export import segmenter_part
from tests.export_packages import needs_onnx
from tests.segmentation.test_api import tiny_config

SIZE = (40, 60)


def load(**adapter: object) -> Segmenter:
    cfg: CfgNode = tiny_config()
    cfg.MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME = "shapeworld-tiny"
    for key, value in adapter.items():
        setattr(cfg.MODEL.CLIP_ADAPTER, key, value)
    torch.manual_seed(0)
    return segmentation.load(cfg, "", "cpu")


def of_model(segmenter: Segmenter, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    rows = inputs["class_embeddings"]
    names = [f"class {number}" for number in range(len(rows))]
    flags = inputs.get("seen", torch.zeros(len(rows))).tolist()
    seen = [name for name, flag in zip(names, flags, strict=True) if flag]
    segmenter.set_classes(ClassEmbeddings(rows), seen=seen)
    with torch.no_grad():
        return segmenter.model([{"image": inputs["image"], "height": SIZE[0], "width": SIZE[1]}])[0]["sem_seg"]


@pytest.mark.parametrize(
    "adapter",
    [
        {},
        {"CLIP_ENSEMBLE": False},
        {"CLIP_ENSEMBLE_WEIGHT": 0.0, "MASK_THR": 0.52},
        {"REGION_SIZE": 40, "MASK_EXPAND_RATIO": 1.3, "MASK_FILL": "zero", "MASK_MATTING": True},
        {"SEPERATE_ADAPTER": True, "LOGIT_SCALE": 0.0},
        {"MASK_THR": 0.99},  # every mask is empty
    ],
    ids=str,
)
def test_graph_scores_as_the_model_does(adapter):
    segmenter = load(**adapter)
    part = segmenter_part(segmenter, SIZE)
    assert ("seen" in part.inputs) == adapter.get("CLIP_ENSEMBLE", True)
    for inputs in (part.inputs, *part.others):
        assert difference(part.run(inputs), [of_model(segmenter, inputs)]) < 1e-4


@pytest.fixture(scope="module")
def part() -> Exportable:
    return segmenter_part(load(), SIZE)


@pytest.fixture(scope="module")
def program(part) -> torch.export.ExportedProgram:
    return export_program(part)


def test_classes_stay_open_in_the_program(part, program):
    assert not any("token_embedding" in name for name in program.state_dict)  # no text tower
    graph = program.module()
    for inputs in (part.inputs, *part.others):
        assert difference((graph(**inputs),), part.run(inputs)) < 1e-4
    assert part.describe()["outputs"] == [{"name": "sem_seg", "shape": ["classes", *SIZE]}]


@needs_onnx
@pytest.mark.slow
def test_onnxruntime_scores_the_same(part, program, tmp_path: Path):
    export_onnx(part, program, tmp_path / "a.onnx")
    for inputs in (part.inputs, *part.others):
        assert difference(onnx_outputs(tmp_path / "a.onnx", inputs), part.run(inputs)) < 1e-4


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"REGION_RESIZED": False}, "crops keep their own sizes .*; set MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE False"),
        ({"REGION_CLASSIFIER": "pooling"}, "MaskPoolingClipAdapter resizes images to a grid that ONNX cannot pool"),
    ],
)
def test_other_models_are_errors(adapter, message):
    with pytest.raises(InputError, match=f"this segmenter cannot be exported: {message}"):
        segmenter_part(load(**adapter), SIZE)


def test_learned_classifiers_are_errors():
    cfg = tiny_config()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NAME = "MaskFormer", "MaskFormerHead"
    with pytest.raises(InputError, match="MODEL.META_ARCHITECTURE MaskFormer takes no class embeddings"):
        segmenter_part(segmentation.load(cfg, "", "cpu"), SIZE)
