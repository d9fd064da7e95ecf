"""Optimiser and schedules of segmentation."""

import json
import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import segmentation  # noqa: F401
from detectron2.modeling import build_backbone, build_sem_seg_head
from detectron2.projects.deeplab import build_lr_scheduler
from prompt_pretrain.errors import InputError
from segmentation.optimizer import build_optimizer, parameter_groups
from tests.golden_files import Golden
from tests.segmentation_recipes import reference, released_config, segmentation_config


def number(text: str) -> float:
    return float(re.match(r"[\d.e-]+", text)[0])


@pytest.mark.golden("zsseg_solver")
def test_schedules_and_clipping(golden: Golden) -> None:
    check_schedules(golden)
    check_full_model_clipping(golden)


def check_schedules(golden: Golden) -> None:
    rtol = number(golden.meta["tolerance"])
    for recipe in golden.meta["schedules"].values():
        cfg = released_config(recipe)
        optimizer = build_optimizer(cfg, nn.Linear(1, 1))
        scheduler = build_lr_scheduler(cfg, optimizer)
        # Closed forms, so a jump to any iteration is the same as walking there.
        for iteration, expected in recipe["lr_at_iteration"].items():
            scheduler.last_epoch = int(iteration)
            (rate,) = set(scheduler.get_lr())
            assert rate == pytest.approx(expected, rel=rtol), (recipe["release"], iteration)


class Toy(nn.Module):
    """Of ``a = arange(4).reshape(2,2) on the root and w = [1,-2,3] on a child named backbone_b``."""

    def __init__(self, text: str) -> None:
        super().__init__()
        count, *shape = map(int, re.search(r"arange\((\d+)\)\.reshape\((\d+),(\d+)\)", text).groups())
        values, child = re.search(r"w = (\[.*?\]) on a child named (\w+)", text).groups()
        self.a = nn.Parameter(torch.arange(float(count)).reshape(shape))
        self.add_module(child, nn.Module())
        self.get_submodule(child).w = nn.Parameter(torch.tensor(json.loads(values), dtype=torch.float32))


def check_full_model_clipping(golden: Golden) -> None:
    recipe = golden.meta["full_model_clipping"]
    rtol = number(golden.meta["tolerance"])
    a, w = (toy := Toy(recipe["toy"])).parameters()
    optimizer = build_optimizer(released_config(recipe), toy)
    found = [[group["lr"], group["weight_decay"]] for group in optimizer.param_groups]
    assert_close(torch.tensor(found), torch.tensor(recipe["groups_lr_wd"]), rtol=rtol, atol=0)
    for step, expected in enumerate(recipe["trajectory"]):
        optimizer.zero_grad()
        ((step + 1) * a.square().sum() + w.pow(3).sum()).backward()
        optimizer.step()
        for parameter, values in zip((a, w), expected, strict=True):
            assert_close(parameter.flatten(), torch.tensor(values), rtol=rtol, atol=1e-7)


def named_groups(cfg, model: nn.Module) -> dict[str, list[str]]:
    """``lr=<rate> wd=<decay>`` -> names, in the format of the reference."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, list[str]] = {}
    for group in parameter_groups(cfg, model):
        key = f"lr={group['lr']:g} wd={group['weight_decay']:g}"
        found.setdefault(key, []).extend(names[parameter] for parameter in group["params"])
    return found


def test_groups_of_the_published_stage_2() -> None:
    expected = next(value for key, value in reference("zsseg_optimizer_groups").items() if key.startswith("R101c"))
    cfg = released_config({"release": "coco-stuff-164k-156/zero_shot_maskformer_R101c_bs32_60k.yaml"})
    with torch.device("meta"):
        model = nn.Module()
        model.backbone = build_backbone(cfg)
        model.sem_seg_head = build_sem_seg_head(cfg, model.backbone.output_shape())
        model.clip_adapter = nn.Module()
        model.clip_adapter.non_object_embedding = nn.Parameter(torch.zeros(1, 512))
        model.clip_adapter.prompt_learner = nn.Module()
        model.clip_adapter.prompt_learner.prefix_prompt = nn.Parameter(torch.zeros(16, 512))
    found = {key: sorted(names) for key, names in named_groups(cfg, model).items()}
    assert found == {key: sorted(names) for key, names in expected["groups"].items()}
    assert type(build_optimizer(cfg, model)).__mro__[1].__name__ == expected["type"]


def test_groups_of_the_published_stage_1() -> None:
    expected = reference("zsseg_optimizer_groups")["proposal_classification_learn_prompt"]
    cfg = released_config(
        {"release": "coco-stuff-164k-156/zero_shot_proposal_classification_learn_prompt_bs32_10k.yaml"}
    )
    model = nn.Module()
    model.prompt = nn.Parameter(torch.zeros(16, 4))
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, getattr(torch.optim, expected["type"]))
    (group,) = optimizer.param_groups
    assert group["momentum"] == expected["momentum"]
    assert [group["lr"], group["weight_decay"]] == expected["groups"][0][1:]


def test_norms_embeddings_and_position_tables_have_decays_of_their_own() -> None:
    cfg = segmentation_config()
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM, cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.1, 0.2, 0.3
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(2, 2, bias=False),
            "batch": nn.BatchNorm2d(2),
            "sync": nn.SyncBatchNorm(2),
            "instance": nn.InstanceNorm2d(2, affine=True),
            "group": nn.GroupNorm(1, 2),
            "layer": nn.LayerNorm(2),
            "embedding": nn.Embedding(2, 2),
        }
    )
    model.relative_position_bias_table = nn.Parameter(torch.zeros(2))
    model.absolute_pos_embed = nn.Parameter(torch.zeros(2))
    model.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decays = {names[group["params"][0]]: group["weight_decay"] for group in parameter_groups(cfg, model)}
    norms = {
        f"{name}.{part}": 0.2 for name in ("batch", "sync", "instance", "group", "layer") for part in ("weight", "bias")
    }
    tables = {"relative_position_bias_table": 0.0, "absolute_pos_embed": 0.0}
    assert decays == {"linear.weight": 0.1, "embedding.weight": 0.3} | norms | tables


def test_shared_parameter_comes_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert len(parameter_groups(segmentation_config(), model)) == 3


def test_clipping_bounds_the_norm_over_all_parameters() -> None:
    cfg = segmentation_config()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM = "SGD", 1.0, 0.0, 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = True, "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    model = nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.ones(4, 3)).sum().backward()
    build_optimizer(cfg, model).step()
    moved = [new - old for new, old in zip(model.parameters(), before, strict=True)]
    assert_close(torch.cat([part.flatten() for part in moved]).norm(), torch.tensor(0.5))


def test_other_types_of_clipping_are_detectron2s() -> None:
    cfg = segmentation_config()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM = "SGD", 1.0, 0.0, 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = True, 0.25
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    model(torch.tensor([[8.0, -8.0]])).sum().backward()
    build_optimizer(cfg, model).step()
    assert_close(before - model.weight, torch.tensor([[0.25, -0.25]]))


def test_what_cannot_be_optimised_is_refused() -> None:
    cfg = segmentation_config()
    cfg.SOLVER.OPTIMIZER = "ADAM"
    with pytest.raises(InputError, match="SOLVER.OPTIMIZER is 'ADAM'; expected SGD or ADAMW"):
        build_optimizer(cfg, nn.Linear(1, 1))
    with pytest.raises(InputError, match="no parameter of .* is trainable"):
        build_optimizer(cfg, nn.ReLU())
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = True, "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.0
    with pytest.raises(InputError, match="CLIP_VALUE is 0.0; it must be greater than 0"):
        build_optimizer(cfg, nn.Linear(1, 1))
