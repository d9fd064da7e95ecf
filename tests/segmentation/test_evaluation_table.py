"""The table of results, with the published numbers beside them."""

import math
from pathlib import Path

from segmentation.evaluation_table import _PUBLISHED, published_numbers, results_table

CONFIGS = Path(__file__).parents[2] / "configs" / "segmentation"


def test_published_numbers_stand_below_those_of_the_run() -> None:
    metrics = {"hIoU-base": 1.04, "mIoU-base": 2.0, "mIoU-unbase": math.nan, "mIoU": 4.0, "IoU-cat": 5.0}
    table = results_table(
        {"coco_2017_test_stuff_sem_seg": {"sem_seg": metrics}},
        "coco-stuff-164k-156/zero_shot_maskformer_R101c_pomp_prompt_bs32_60k",
    )
    assert table.splitlines() == [
        "| data set |  | hIoU | seen mIoU | unseen mIoU | mIoU |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| coco_2017_test_stuff_sem_seg | here | 1.0 | 2.0 | n/a | 4.0 |",
        "|  | published | 39.1 | 39.9 | 38.2 |  |",
    ]


def test_flat_and_augmented_results_have_rows_too() -> None:
    table = results_table({"a": {"macc_top1": 50.0, "acc_top1_x": 1.0}, "b": {"sem_seg_TTA": {"mIoU": 3.0}}})
    assert table.splitlines()[2:] == ["| a | here |  | 50.0 |", "| b | here, augmented | 3.0 |  |"]


def test_published_numbers_are_of_files_that_exist() -> None:
    for name, rows in _PUBLISHED.items():
        assert (CONFIGS / f"{name}.yaml").is_file()
        for data_set, metrics in rows.items():
            assert published_numbers(name, data_set) == metrics
    assert published_numbers("nix", "voc_sem_seg_test") == {}
