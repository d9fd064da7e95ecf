"""Numbers around POMP as the release computes them; everything that can vary between two files comes from the file."""

import re
from collections.abc import Iterable

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from prompt_pretrain.analysis import alignment, uniformity
from prompt_pretrain.classification.few_shot import sample_few_shot
from prompt_pretrain.classification.metrics import ClassificationMetrics, RunningTopK
from prompt_pretrain.classification.samplers import evaluation_batches, evaluation_indices
from prompt_pretrain.clip import Clip
from prompt_pretrain.config import get_cfg
from prompt_pretrain.local_contrast import local_contrast_logits, local_contrast_loss
from prompt_pretrain.optimisation import build_sgd, learning_rate_from_cfg, set_learning_rate
from prompt_pretrain.prompt_tokens import tokenize_prompts
from prompt_pretrain.text_encoder import TextEncoder
from tests.golden.fill import fill
from tests.golden_files import Golden


@pytest.mark.golden("pomp_misc")
def test_pomp_misc(golden: Golden) -> None:
    meta = golden.meta
    for name, table in meta.get("lr", {}).items():
        check_learning_rates(name, table)
    if "sgd" in meta:
        check_sgd(golden)
    for case in meta.get("align_uniform", ()):
        check_alignment_and_uniformity(case)
    if "metrics" in meta:
        check_metrics(golden)
    for case in meta.get("few_shot", ()):
        check_few_shot(case, meta["few_shot_inputs"])
    for case in meta.get("sequential_distributed_sampler", ()):
        check_evaluation_sampler(case)


def check_learning_rates(name: str, table: dict) -> None:
    optim = get_cfg().OPTIM
    for key, value in table["settings"].items():
        assert key in optim, f"lr {name}: no key OPTIM.{key}"
        optim[key] = value
    rates = [learning_rate_from_cfg(epoch, optim) for epoch in range(len(table["lr_per_epoch"]))]
    np.testing.assert_allclose(rates, table["lr_per_epoch"], rtol=1e-7, atol=1e-12, err_msg=f"lr {name}")


def check_sgd(golden: Golden) -> None:
    recipe, loss_golden = golden.meta["sgd"], golden.sibling("pomp_loss")
    tolerance = tolerances(recipe["tolerance"])
    start = torch.from_numpy(loss_golden.arrays[recipe["start"].split()[0]])
    images = torch.from_numpy(loss_golden.arrays[recipe["image_features"].split()[0]])
    labels = torch.tensor(recipe["labels"])
    class_names = loss_golden.meta["class_names"]
    clip = golden_clip(loss_golden.meta["model"])
    prompts = tokenize_prompts(class_names, clip.tokenizer, len(start), recipe.get("position", "end"))
    encoder = TextEncoder(clip)
    ctx = start.clone().requires_grad_()
    settings = recipe["optimizer"]
    assert settings["name"] == "SGD"
    optimizer = build_sgd([ctx], **{key: value for key, value in settings.items() if key != "name"})
    losses, deltas = [], []
    for step, rate in zip(recipe["steps"], recipe["lr_used"], strict=True):
        case = loss_golden.meta["cases"][f"{step}_{len(start)}_{recipe['margin']}"]
        negatives = torch.tensor(case["negatives"])
        features = encoder(prompts.select(torch.cat([labels, negatives])), ctx)
        logits = local_contrast_logits(
            images,
            features[: len(labels)],
            features[len(labels) :],
            labels,
            negatives,
            clip.logit_scale,
            num_classes=len(class_names),
            margin=recipe["margin"].removeprefix("fixed"),
        )
        loss = local_contrast_loss(logits)
        optimizer.zero_grad()
        loss.backward()
        set_learning_rate(optimizer, rate)
        optimizer.step()
        losses.append(loss.detach())
        deltas.append(ctx.detach() - start)
    expected = golden.arrays["sgd.ctx_delta"], golden.arrays["sgd.loss"]
    assert_close(torch.stack(deltas), torch.from_numpy(expected[0]), rtol=0, atol=tolerance["ctx_delta"])
    assert_close(torch.stack(losses), torch.from_numpy(expected[1]), rtol=0, atol=tolerance["loss"])


def check_alignment_and_uniformity(case: dict) -> None:
    rng = np.random.RandomState(case["seed"])
    classes = rng.standard_normal((case["n"], case["d"]))
    images = classes + case["noise"] * rng.standard_normal((case["n"], case["d"]))
    w, x = (F.normalize(torch.from_numpy(rows), dim=1).float() for rows in (classes, images))
    assert alignment(x, w, torch.arange(case["n"])) == pytest.approx(case["align"], abs=case["tolerance"])
    assert uniformity(w) == pytest.approx(case["uniform"], abs=case["tolerance"])


def check_metrics(golden: Golden) -> None:
    expected = golden.meta["metrics"]
    logits = torch.from_numpy(golden.arrays["metrics.logits"])
    labels = torch.from_numpy(golden.arrays["metrics.labels"]).long()
    assert logits.shape[1] == expected["classes"]
    assert int(((logits == logits.amax(1, keepdim=True)).sum(1) > 1).sum()) == expected["rows_with_tied_maximum"]
    for image_batch, class_chunk in ((len(labels), logits.shape[1]), (7, 3)):
        metrics = ClassificationMetrics(logits.shape[1])
        for rows, targets in zip(logits.split(image_batch), labels.split(image_batch), strict=True):
            metrics.update(ranked(rows.split(class_chunk, dim=1)), targets)
        values = metrics.compute()
        assert {name: values[name] for name in expected["results"]} == pytest.approx(expected["results"], abs=1e-9)
        accuracies = {str(c.label): c.accuracy for c in metrics.per_class()}
        assert accuracies == pytest.approx(expected["per_class"], abs=1e-9)


def check_few_shot(case: dict, inputs: dict) -> None:
    train, val = sample_few_shot(inputs["train_labels"], inputs["val_labels"], case["shots"], case["seed"])
    assert train == case["train_indices"]
    assert val == case["val_indices"]


def check_evaluation_sampler(case: dict) -> None:
    length, batch_size, world = case["length"], case["batch_size"], case["world"]
    assert len(case["per_rank"]) == world
    shares = [evaluation_indices(length, batch_size, world, rank) for rank in range(world)]
    assert shares == case["per_rank"]
    batches = [evaluation_batches(length, batch_size, rank=rank, world=world) for rank in range(world)]
    assert [int(i) for share in batches for batch in share for i in batch] == list(range(length))


def ranked(chunks: Iterable[torch.Tensor]) -> torch.Tensor:
    running = RunningTopK()
    for chunk in chunks:
        running.update(chunk)
    assert running.columns is not None
    return running.columns


def golden_clip(recipe: dict) -> Clip:
    model = open_clip.CLIP(**recipe["open_clip_config"]).eval()
    fill(model, skip=tuple(recipe["skip"]))
    with torch.no_grad():
        model.logit_scale.fill_(recipe["logit_scale"])
    return Clip(model, clip_id="golden")


def tolerances(text: str) -> dict[str, float]:
    """``"atol 2e-6 on ctx_delta, 2e-5 on loss"`` as a dict."""
    return {name: float(value) for value, name in re.findall(r"([\d.]+(?:e[-+]?\d+)?) on (\w+)", text)}
