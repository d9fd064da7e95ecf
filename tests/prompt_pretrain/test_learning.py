"""Pre-training must teach something: a short seeded run on ShapeWorld against the hard prompt, on images held out."""

import pytest

from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.classification.class_features import ClassFeatureSource
from prompt_pretrain.prompt import load_prompt
from prompt_pretrain.shapeworld.writers import Recipe
from prompt_pretrain.shapeworld_study import HARD_PROMPT, PromptRun, Score, ShapeWorldStudy

MARGIN = 1.5


@pytest.mark.slow
@pytest.mark.parametrize("sampled", ["64", "all"])
def test_a_short_run_beats_the_hard_prompt_on_held_out_images(tmp_path_factory, sampled):
    study = ShapeWorldStudy(
        tmp_path_factory.getbasetemp() / "learning",  # one world for both
        Recipe(num_classes=400, num_novel=100, images_per_class=8, val_per_class=4),
        config_file="configs/prompt_pretrain/shapeworld_tiny.yaml",
        overrides=("OPTIM.MAX_EPOCH", "5"),
    )
    study.write_world()
    result = study.train(PromptRun(f"K = {sampled}", ("TRAINER.POMP.UPDATE_CLASS_NUM", sampled))).result
    sources = [
        ClassFeatureSource.parse("template", HARD_PROMPT),
        ClassFeatureSource("learned", ClassTexts(load_prompt(result.last_prompt))),
    ]
    hard, learned = (Score.of(row) for row in study.compare(sources).rows)
    print(hard, learned)
    assert learned.base > hard.base + MARGIN
    assert learned.novel > hard.novel + MARGIN
