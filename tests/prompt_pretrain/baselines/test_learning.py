"""Every baseline must learn something: short seeded runs on ShapeWorld against the hard prompt, on test images."""

import pytest

from prompt_pretrain.grid_runner import GridRunner
from prompt_pretrain.grids import SCALES, GridRow
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
    [("coop", 1.0), ("cocoop", 1.0), ("lasp", 1.0), ("maple", 1.0), ("vpt_deep", 0.5), ("vpt_shallow", 0.5)],
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
