"""Every baseline must learn something: short seeded runs on ShapeWorld against what they start from, on test images.

All start from the hard prompt's words. The visual prompts keep them as their text and start with random tokens that
disturb the image tower a little, so they are only asked to lower the training loss.
"""

from pathlib import Path

import pytest

from prompt_pretrain.grid_runner import GridRunner
from prompt_pretrain.grids import SCALES, GridRow
from prompt_pretrain.metrics_log import read_metrics
from prompt_pretrain.shapeworld.writers import Recipe, write_imagenet21k

HARD = GridRow("hard prompt", texts="a photo of a {}.")


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> GridRunner:
    folder = tmp_path_factory.mktemp("baselines")
    write_imagenet21k(
        folder / "data" / "shapeworld", Recipe(num_classes=200, num_novel=50, images_per_class=8, val_per_class=8)
    )
    return GridRunner(
        folder,
        config_folder="configs/prompt_pretrain",
        data_root=folder / "data",
        evaluation=SCALES["shapeworld"].evaluation,
        seeds=[1],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "gain"),
    [("coop", 1.0), ("cocoop", 1.0), ("lasp", 1.0), ("maple", 1.0)],
)
def test_a_short_run_beats_the_hard_prompt(runner, config, gain):
    row = SCALES["shapeworld"].baseline(config, config)
    hard = runner.result(HARD, 0, row)["accuracy"]
    learned = runner.result(row, 1, row)["accuracy"]
    print(hard, learned)
    assert learned["base"] > hard["base"] + gain


@pytest.mark.slow
def test_the_linear_probe_learns_its_classes_from_nothing(runner):
    row = SCALES["shapeworld"].baseline("linear probe", "linear_probe")
    accuracy = runner.result(row, 1, row)["accuracy"]
    assert accuracy["base"] > 50 and accuracy["novel"] is None


@pytest.mark.slow
@pytest.mark.parametrize("config", ["vpt_deep", "vpt_shallow"])
def test_visual_prompts_lower_the_training_loss(runner, config):
    row = SCALES["shapeworld"].baseline(config, config)
    runner.result(row, 1, row)
    logs = [path for path in runner.folder.glob("runs/*/metrics.jsonl") if "NAME: VPT" in _config_beside(path)]
    losses = [line["loss"] for line in read_metrics(max(logs, key=lambda path: path.stat().st_mtime), "epoch")]
    assert losses[-1] < losses[0] - 0.01


def _config_beside(path: Path) -> str:
    return (path.parent / "config.yaml").read_text()
