"""Numbers recorded from the released trainer of regional prompts on the tiny CLIP of ``pomp_loss``."""

import math
import re

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from prompt_pretrain.baselines.learning import LearnerLoss
from prompt_pretrain.local_contrast import full_contrast_logits
from prompt_pretrain.prompt_loss import StepRows
from prompt_pretrain.regional.learner import RegionalPrompt
from prompt_pretrain.text_encoder import METHODS, TextEncoder
from tests.golden_files import Golden
from tests.prompt_pretrain.test_golden_pomp_loss import tiny_clip


@pytest.mark.golden("rpl_prompt")
@pytest.mark.parametrize("method", METHODS)
def test_rpl_prompt(golden: Golden, method: str) -> None:
    sibling = golden.sibling("pomp_loss")
    clip = tiny_clip(sibling)
    clip.logit_scale = math.exp(sibling.meta["model"]["logit_scale"])
    images, labels = tensor(golden, "image_features"), torch.tensor(golden.meta["labels"])
    for n_ctx in golden.meta["n_ctx"]:
        learner = RegionalPrompt(clip, n_ctx=n_ctx)
        learner.encoder = TextEncoder(clip, method)
        learner.load_state_dict({name: tensor(golden, f"n{n_ctx}.{name}") for name in ("ctx1", "ctx2")})
        classes = learner.prepare(golden.meta["entries"])
        features = learner.class_features(classes)
        rows = StepRows(labels, torch.arange(len(labels)))
        loss = LearnerLoss(learner, classes)(images, rows).loss
        loss.backward()
        assert learner.ctx1.grad is not None and learner.ctx2.grad is not None
        found = {
            "class_embeddings": ("embeddings", features.detach()),
            "logits": ("logits", full_contrast_logits(images, features, clip.logit_scale).detach()),
            "loss": ("loss", loss.detach()),
            "grad1": ("gradients", learner.ctx1.grad),
            "grad2": ("gradients", learner.ctx2.grad),
        }
        for name, (what, values) in found.items():
            expected = tensor(golden, f"n{n_ctx}.{name}").reshape(values.shape)
            assert_close(values, expected, **tolerance(golden, what), msg=lambda m: f"n{n_ctx}.{name}: {m}")  # noqa: B023


def tensor(golden: Golden, name: str) -> Tensor:
    return torch.from_numpy(golden.arrays[name])


def tolerance(golden: Golden, what: str) -> dict[str, float]:
    """From ``embeddings 2e-5, logits 1e-4`` (or ``… atol 2e-5``)."""
    found = re.search(rf"{what}(?: atol)? ([0-9.e+-]+)", golden.meta["tolerance"])
    assert found, f"no tolerance of {what}: {golden.meta['tolerance']}"
    return {"atol": float(found[1]), "rtol": 0.0}
