"""Layers in half precision at inference."""

import pytest
import torch
from torch import nn

from detection.inference_precision import inference_dtype, run_layers
from prompt_pretrain.errors import InputError
from tests.detection.small_rcnn import small_input, small_model


def test_layers_compute_in_the_given_type_and_return_float32():
    seen = []

    class Layer(nn.Linear):
        def forward(self, x):
            found = super().forward(x)
            seen.append(found.dtype)
            return found

    layer, x = Layer(4, 3), torch.randn(2, 4)
    with torch.no_grad():
        exact, rounded = run_layers(layer, x, None), run_layers(layer, x, torch.bfloat16)
    assert seen == [torch.float32, torch.bfloat16]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)
    assert run_layers(lambda x: {"p3": layer(x)}, x, torch.bfloat16)["p3"].dtype == torch.float32


def test_an_unknown_precision_is_an_error():
    with pytest.raises(InputError, match="INFERENCE_PRECISION is 'int8'; expected one of fp32, bf16, fp16"):
        inference_dtype("int8")


def test_a_detector_in_bfloat16_finds_what_it_finds_in_float32(tmp_path):
    overrides = {"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0}
    exact = small_model(tmp_path, **overrides).eval()
    rounded = small_model(tmp_path, MODEL__INFERENCE_PRECISION="bf16", **overrides).eval()
    rounded.load_state_dict(exact.state_dict())
    with torch.no_grad():
        first, second = (model([small_input()])[0]["instances"] for model in (exact, rounded))
        assert exact.roi_heads.inference_dtype is None
        assert rounded.roi_heads.inference_dtype is torch.bfloat16
        assert second.scores.dtype == second.pred_boxes.tensor.dtype == torch.float32
    assert len(first) and len(second)
    assert abs(float(first.scores.max() - second.scores.max())) < 0.05
