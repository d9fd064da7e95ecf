"""What the report of the quickstart tells of detector and segmenter."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quickstart_parts.scenes import DETECTION_SETS, POMP, ROWS, SHUFFLED, SceneOutcome

from detection.shapeworld_study import LVIS
from prompt_pretrain.plots import Curve, plot_curves, plot_grouped_bars, png_bytes
from prompt_pretrain.quickstart.page import Chapter
from prompt_pretrain.report import Picture, Pictures, Report, Table, Text
from prompt_pretrain.shapeworld_study import HARD_PROMPT
from segmentation.shapeworld_study import FOREIGN, SOURCE

__all__ = ["scene_chapter", "scene_numbers", "scene_text"]
_DETECTION_TITLES = dict(zip(DETECTION_SETS, ("own", "COCO", "Objects365"), strict=True))
_SEGMENTATION_TITLES = {SOURCE: "own", **FOREIGN}
_SAME_WEIGHTS = (
    f"All rows have the same weights, trained with the embeddings of {POMP}; only those of the evaluation differ. "
    f"`{HARD_PROMPT}` is the hard prompt. Shuffled embeddings are those of {POMP} with rows in random order: what "
    "is left when names no longer tell what they mean, that is, chance."
)


def scene_chapter(outcome: SceneOutcome) -> Chapter:
    """Facts, sections, times and commands for the report."""
    detection, segmentation = outcome.detection, outcome.segmentation
    return Chapter(
        lead=(
            "The same prompt then named the classes of a detector and of a segmenter, trained for minutes on scenes in "
            "which novel things have no boxes and no labels."
        ),
        facts=(
            (_change(detection, LVIS, "novel"), "detection, AP of novel classes: shuffled → POMP"),
            (_change(segmentation, SOURCE, "unseen"), "segmentation, mIoU of unseen classes: shuffled → POMP"),
        ),
        pictures=_first_pictures(outcome),
        sections=(
            ("Open-vocabulary detection", lambda report: _add_detection(report, outcome)),
            ("Open-vocabulary segmentation", lambda report: _add_segmentation(report, outcome)),
        ),
        seconds=outcome.seconds,
        commands=outcome.commands,
    )


def scene_numbers(outcome: SceneOutcome) -> dict[str, Any]:
    """The numbers for a json file."""
    return {
        "detection": outcome.detection,
        "segmentation": outcome.segmentation,
        "command_seconds": outcome.seconds,
        "commands": dict(outcome.commands),
    }


def scene_text(outcome: SceneOutcome) -> str:
    """The most important numbers for a terminal."""
    lines = [f"{'':<22}detection: AP   novel AP   segmentation: seen mIoU   unseen mIoU"]
    for row in ROWS:
        boxes, maps = outcome.detection[row][LVIS], outcome.segmentation[row][SOURCE]
        lines.append(f"{row:<22}{boxes['AP']:13.1f}{boxes['novel']:11.1f}{maps['seen']:25.1f}{maps['unseen']:14.1f}")
    return "\n".join(lines)


def _change(results: Mapping[str, Any], data_set: str, metric: str) -> str:
    before, after = (results[row][data_set][metric] for row in (SHUFFLED, POMP))
    return f"{before:.1f} → {after:.1f}"


def _add_detection(report: Report, outcome: SceneOutcome) -> None:
    plan, worlds = outcome.plan, outcome.plan.detection
    lvis = worlds.lvis
    rows = [
        [_DETECTION_TITLES[name], row, *_numbers(outcome.detection[row][name], ("AP", "AP50", "novel"))]
        for name in DETECTION_SETS
        for row in ROWS
    ]
    report.add(
        Text(
            f"Detic's CenterNet2 with a tiny ResNet, from random weights: {plan.detector_steps} iterations on "
            f"{lvis.train_images} scenes with boxes of {lvis.num_classes} base classes. Tested on {lvis.val_images} "
            f"new scenes with these and {lvis.num_novel} novel classes, and, without any training there, on scenes in "
            f"the formats of COCO ({len(worlds.coco.things)} classes) and Objects365 "
            f"({len(worlds.objects365.things)}), half of whose classes are novel. {_SAME_WEIGHTS}"
        ),
        Table(
            ["scenes", "class embeddings", "AP", "AP50", "AP novel"],
            rows,
            "Box AP in percent over all classes; the last column over novel classes alone. Own: new scenes like those "
            "of the training. One seed.",
            strong=_strong(rows),
            text_columns=[0, 1],
        ),
        Pictures([_bars("detection", outcome.detection, _DETECTION_TITLES, "AP"), _loss(outcome, "detector")]),
        *_overlays(outcome, "detector"),
    )


def _add_segmentation(report: Report, outcome: SceneOutcome) -> None:
    plan, stuff = outcome.plan, outcome.plan.segmentation.coco_stuff
    found = outcome.segmentation
    own = [[row, *_numbers(found[row][SOURCE], ("seen", "unseen", "hIoU", "pACC"))] for row in ROWS]
    foreign = [
        [_SEGMENTATION_TITLES[name], row, *_numbers(found[row][name], ("mIoU", "fwIoU", "pACC"))]
        for name in FOREIGN
        for row in ROWS
    ]
    report.add(
        Text(
            f"ZSSeg's MaskFormer on the frozen tower of the tiny CLIP, with class scores of queries and of crops: "
            f"{plan.segmenter_steps} iterations on {stuff.train_images} scenes with labels of {stuff.num_classes} seen "
            f"things and six grounds. Tested on {stuff.val_images} new scenes with these and {stuff.num_novel} unseen "
            f"things, and on scenes in the formats of other data sets. {_SAME_WEIGHTS}"
        ),
        Table(
            ["class embeddings", "mIoU seen", "mIoU unseen", "hIoU", "pixel accuracy"],
            own,
            "In percent, on scenes as those trained on; all classes are candidates everywhere. One seed.",
            strong=_strong(own, column=0),
        ),
        Table(
            ["scenes", "class embeddings", "mIoU", "fwIoU", "pixel accuracy"],
            foreign,
            "In percent, on scenes of other data sets, without training on them.",
            strong=_strong(foreign),
            text_columns=[0, 1],
        ),
        Pictures([_seen_and_unseen(outcome), _loss(outcome, "segmenter")]),
        *_overlays(outcome, "segmenter"),
    )


def _first_pictures(outcome: SceneOutcome) -> list[Picture]:
    """One of the detector, one of the segmenter."""
    first = []
    for model in ("detector", "segmenter"):
        title = next(title for title in outcome.pictures if model in title)
        path, truth = outcome.pictures[title][-1]
        first.append(replace(_overlay(title, path, truth), name=f"first_{model}"))
    return first


def _numbers(metrics: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [f"{metrics[name]:.1f}" for name in names]


def _strong(rows: Sequence[Sequence[str]], column: int = 1) -> list[int]:
    return [index for index, row in enumerate(rows) if row[column] == POMP]


def _bars(kind: str, results: Mapping[str, Any], titles: Mapping[str, str], metric: str) -> Picture:
    rows = {title: {row: results[row][name][metric] for row in ROWS} for name, title in titles.items()}
    figure = plot_grouped_bars(rows, title=f"{metric} by class embeddings", ylabel=f"box {metric} (%)")
    return Picture(
        f"{kind}_rows",
        png_bytes(figure),
        "What true names give beyond shuffled ones, on scenes like those of the training and on other data sets.",
        f"bar chart of {metric} for shuffled embeddings, the hard prompt and POMP on each data set",
    )


def _seen_and_unseen(outcome: SceneOutcome) -> Picture:
    found = {row: outcome.segmentation[row][SOURCE] for row in ROWS}
    rows = {row: {"seen": metrics["seen"], "unseen": metrics["unseen"]} for row, metrics in found.items()}
    return Picture(
        "segmentation_rows",
        png_bytes(plot_grouped_bars(rows, title="Seen and unseen classes", ylabel="mIoU (%)")),
        "Unseen things were never labelled in training.",
        "bar chart of mIoU of seen and unseen classes for shuffled embeddings, the hard prompt and POMP",
    )


def _loss(outcome: SceneOutcome, name: str) -> Picture:
    rows = outcome.losses[name]
    curve = Curve(name, [row["iteration"] + 1 for row in rows], [row["total_loss"] for row in rows])
    return Picture(
        f"{name}_loss",
        png_bytes(plot_curves([curve], title=f"Training loss, {name}", xlabel="iteration", ylabel="sum of all losses")),
        "The learning rate warms up first.",
        f"training loss of the {name} over iterations",
    )


def _overlays(outcome: SceneOutcome, name: str) -> list[Text | Pictures]:
    blocks: list[Text | Pictures] = []
    for title, pictures in outcome.pictures.items():
        if name not in title:
            continue
        words = shlex.split(dict(outcome.commands)[title])
        asked = ""
        if "--custom-vocabulary" in words:
            given = words[words.index("--custom-vocabulary") + 1].replace(",", ", ")
            asked = f", asked for words that no training used, with a lower threshold of the score ({given})"
        blocks.append(Text(f"What the {name} finds in test scenes at fixed places of the list{asked}:"))
        blocks.append(Pictures([_overlay(title, *pair) for pair in pictures]))
    return blocks


def _overlay(title: str, path: Path, truth: Sequence[str]) -> Picture:
    name = f"{title.replace(' ', '_').replace(',', '')}_{path.stem}"
    return Picture(name, path.read_bytes(), f"There: {', '.join(truth)}.", f"{title}: {path.name}")
