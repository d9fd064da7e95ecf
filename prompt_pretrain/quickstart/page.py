"""The report of a quickstart, and the picture that the README shows."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure

from prompt_pretrain.analysis import project_classes_and_images
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.plots import (
    OTHERS,
    Curve,
    plot_curves,
    plot_grouped_bars,
    plot_projection,
    plot_samples,
    png_bytes,
    style,
)
from prompt_pretrain.prompt import load_prompt
from prompt_pretrain.quickstart.steps import HARD_NAME, Outcome
from prompt_pretrain.report import Commands, Facts, Picture, Pictures, Report, Table, Text
from prompt_pretrain.shapeworld import parse_thing
from prompt_pretrain.shapeworld_study import HARD_PROMPT, Score, ShapeWorldStudy
from prompt_pretrain.vocabulary import Vocabulary

_SHOWN_SHAPES = ("star", "heart", "fish", "house", "ring", "leaf")
_SERIES = ("base classes", "novel classes")


@dataclass(frozen=True)
class Chapter:
    """What a further part of a quickstart adds to the report.

    Attributes:
        lead: for the paragraph that opens the page.
        facts: numbers that one reads first, with their meaning.
        pictures: that one sees first.
        sections: titles, and what fills the section.
        seconds: of single commands, which may have run side by side.
        commands: titles and command lines.
    """

    lead: str
    facts: Sequence[tuple[str, str]]
    pictures: Sequence[Picture]
    sections: Sequence[tuple[str, Callable[[Report], None]]]
    seconds: Mapping[str, float] = field(default_factory=dict)
    commands: Sequence[tuple[str, str]] = ()


def scores(outcome: Outcome) -> dict[str, Score]:
    """Score of every row, in order."""
    return {row.name: Score.of(row) for row in outcome.comparison.rows}


def build_report(outcome: Outcome, study: ShapeWorldStudy, chapters: Sequence[Chapter] = ()) -> Report:
    """The page: first what came out, then how, then how to do it again."""
    report = Report(
        "Open-vocabulary recognition on ShapeWorld" if chapters else "Prompt pre-training on ShapeWorld",
        footer=f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python "
        f"{platform.python_version()}, torch {torch.__version__} on {torch.get_num_threads()} threads. "
        f"CLIP: {outcome.clip_id}.",
    )
    _add_summary(report, outcome, chapters)
    _add_accuracy(report, outcome)
    _add_samples(report, outcome)
    for title, fill in (section for chapter in chapters for section in chapter.sections):
        report.section(title)
        fill(report)
    _add_training(report, outcome)
    _add_space(report, outcome, study)
    _add_prompt(report, outcome)
    _add_steps(report, outcome, chapters)
    return report


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The report's numbers."""
    return {
        "recipe": asdict(outcome.plan.recipe),
        "clip": outcome.clip_id,
        "images": outcome.image_counts,
        "scores": {name: {**asdict(score), "harmonic": score.harmonic} for name, score in scores(outcome).items()},
        "comparison": outcome.comparison.as_json(),
        "epochs": outcome.epochs,
        "shown": outcome.best,
        "nearest_words": [[asdict(word) for word in row] for row in outcome.words],
        "confusions": outcome.confusions,
        "seconds": outcome.seconds,
        "prompts": {name: str(path) for name, path in outcome.prompts.items()},
        "class_embeddings": [str(path) for path in outcome.embedding_files],
    }


def text_table(outcome: Outcome) -> str:
    """The accuracies for a terminal."""
    found = scores(outcome)
    width = max(map(len, found))
    lines = [f"{'top-1 accuracy, %':<{width}}    base   novel   harmonic mean"]
    lines += [f"{name:<{width}}  {s.base:6.1f}  {s.novel:6.1f}  {s.harmonic:14.1f}" for name, s in found.items()]
    return "\n".join(lines)


def _add_summary(report: Report, outcome: Outcome, chapters: Sequence[Chapter]) -> None:
    recipe, found = outcome.plan.recipe, scores(outcome)
    hard, best = found[HARD_NAME], found[outcome.best]
    first = [picture for chapter in chapters for picture in chapter.pictures]
    report.add(
        Text(
            f"A prompt of a few learned vectors was pre-trained for a frozen CLIP on {recipe.num_classes:,} classes of "
            "ShapeWorld, a synthetic world of coloured, textured shapes. Without further training it then classified "
            f"new images of these classes, and of {recipe.num_novel:,} novel classes that no training image showed."
            + "".join(f" {chapter.lead}" for chapter in chapters),
            lead=True,
        ),
        Facts(
            [
                (f"{hard.base:.1f} → {best.base:.1f}", "accuracy on base classes: hard → learned prompt, %"),
                (f"{hard.novel:.1f} → {best.novel:.1f}", "accuracy on novel classes: hard → learned prompt, %"),
                *(fact for chapter in chapters for fact in chapter.facts),
                *([] if chapters else [(f"{sum(outcome.image_counts.values()):,}", "images drawn and encoded once")]),
                (duration(sum(outcome.seconds.values())), "for all steps on this machine"),
            ]
        ),
        *([Pictures(first)] if first else []),
        Text(
            f"The learned prompt shown here is “{outcome.best}”: the best one on images held out from training. "
            "Accuracy is overall top-1. Base images are classified among the base classes, novel images among the "
            "novel ones; the columns “among all” put both kinds of classes together."
        ),
    )


def _add_accuracy(report: Report, outcome: Outcome) -> None:
    found = scores(outcome)
    recipe = outcome.plan.recipe
    accuracies = ["base", "novel", "harmonic mean", "base among all", "novel among all"]
    columns = ["prompt", *accuracies, "alignment", "uniformity"]
    rows = [
        [
            name,
            *(f"{value:.1f}" for value in (s.base, s.novel, s.harmonic, s.base_among_all, s.novel_among_all)),
            *(f"{value:.3f}" for value in (s.alignment, s.uniformity)),
        ]
        for name, s in found.items()
    ]
    caption = (
        f"Top-1 accuracy in percent on {outcome.image_counts['base test']:,} base and "
        f"{outcome.image_counts['novel test']:,} novel test images. Hard prompt: `{HARD_PROMPT}`; guessing at random "
        f"would give {100 / recipe.num_classes:.2f} and {100 / recipe.num_novel:.2f}. Shuffled embeddings are those of "
        f"“{outcome.best}” in random order. Alignment (distance of an image to its class) and uniformity (crowding of "
        "the classes) are better the lower they are. One seed."
    )
    report.section("Zero-shot accuracy")
    report.add(
        Pictures(
            [
                Picture(
                    "accuracy",
                    png_bytes(
                        plot_grouped_bars({name: _pair(s) for name, s in found.items()}, title="Accuracy by prompt")
                    ),
                    "Base classes were trained on; novel classes are unseen combinations of seen attributes.",
                    "bar chart of top-1 accuracy on base and novel classes for each prompt",
                ),
                Picture(
                    "accuracy_by_k",
                    png_bytes(_accuracy_by_k(outcome, found)),
                    "K counts the classes that each training step contrasts an image with. Fewer cost less; K = all "
                    "needs no sampling and no correction. Dashes: the hard prompt.",
                    "lines of top-1 accuracy over the number of sampled classes K, with the hard prompt as dashes",
                ),
            ]
        ),
        Table(columns, rows, caption, strong=[list(found).index(outcome.best)]),
    )


def _add_samples(report: Report, outcome: Outcome) -> None:
    report.section("What it sees")
    report.add(
        Text(
            "Test images at fixed places of the list, not chosen by result. Above each image its class, below it the "
            "best guess of the hard and of the learned prompt among all classes, base and novel, with its probability."
        ),
        Pictures(
            [
                Picture(
                    f"samples_{kind}",
                    png_bytes(plot_samples(part, title=f"{kind.capitalize()} classes")),
                    f"Images of {kind} classes.",
                    f"test images of {kind} classes with the guesses of two prompts",
                )
                for kind, part in (
                    ("base", outcome.samples[: len(outcome.samples) // 2]),
                    ("novel", outcome.samples[len(outcome.samples) // 2 :]),
                )
            ]
        ),
        Table(
            ["true class", "taken for", "images"],
            [[row["label"], row["predicted"], str(row["images"])] for row in outcome.confusions],
            f"The most frequent confusions of “{outcome.best}” among all classes.",
            text_columns=[0, 1],
        ),
    )


def _add_training(report: Report, outcome: Outcome) -> None:
    lines = [
        Curve(name, [row["step"] for row in rows], [row["loss"] for row in rows])
        for name, rows in outcome.lines.items()
    ]
    epochs = [
        Curve(name, [row["epoch"] for row in rows], [row["accuracy"] for row in rows])
        for name, rows in outcome.epochs.items()
        if all(row.get("accuracy") is not None for row in rows)
    ]
    report.section("Training")
    report.add(
        Pictures(
            [
                Picture(
                    "loss",
                    png_bytes(plot_curves(lines, title="Training loss", xlabel="step", ylabel="cross entropy")),
                    "Each loss is over its own K classes (negative logits raised by the local-correction margin), so "
                    "compare the slopes, not the heights.",
                    "training loss over steps for each run",
                ),
                Picture(
                    "held_out",
                    png_bytes(
                        plot_curves(
                            epochs, title="Accuracy on held-out images", xlabel="epoch", ylabel="top-1 accuracy (%)"
                        )
                    ),
                    "Images held out from training choose the epoch; the first epoch is the warm-up.",
                    "accuracy on held-out images over epochs for each run",
                ),
            ]
        )
    )


def _add_space(report: Report, outcome: Outcome, study: ShapeWorldStudy) -> None:
    pictures = []
    texts = {"hand_written": ClassTexts(templates=(HARD_PROMPT,)), "learned": _texts(outcome)}
    for (key, source), title in zip(texts.items(), ("Hard prompt", outcome.best), strict=True):
        pictures.append(
            Picture(
                f"space_{key}",
                png_bytes(_space(study, source, title)),
                "Class features (large) and test images (small) by shape, in the plane of largest variance; texts and "
                "images are centred apart.",
                f"principal components of class and image features with the prompt: {title}",
            )
        )
    report.section("The joint space")
    report.add(Pictures(pictures))


def _add_prompt(report: Report, outcome: Outcome) -> None:
    rows = [
        [f"v{index}", ", ".join(f"{word.word} ({word.distance:.2f})" for word in row)]
        for index, row in enumerate(outcome.words, start=1)
    ]
    report.section("What the prompt says")
    report.add(
        Text(
            "The words nearest to each learned vector, with Euclidean distances. Learned vectors rarely "
            "spell words: read this as a curiosity, not as an explanation."
        ),
        Table(["vector", "nearest words"], rows, text_columns=[1]),
    )


def _add_steps(report: Report, outcome: Outcome, chapters: Sequence[Chapter]) -> None:
    total = sum(outcome.seconds.values())
    rows = [[name, duration(seconds)] for name, seconds in outcome.seconds.items()]
    single = [[title, duration(seconds)] for chapter in chapters for title, seconds in chapter.seconds.items()]
    commands = [*outcome.commands, *(command for chapter in chapters for command in chapter.commands)]
    report.section("Time and commands")
    report.add(Table(["step", "time"], [*rows, ["all steps", duration(total)]], strong=[len(rows)]))
    if single:
        caption = "Two at a time where there are two cores."
        report.add(Table(["command of the last step", "time"], single, caption, text_columns=[0]))
    report.add(
        Text("The same steps one by one; each command explains itself with `--help`."),
        Commands([line for title, command in commands for line in (f"# {title}", command)]),
    )


def _accuracy_by_k(outcome: Outcome, found: Mapping[str, Score]) -> Figure:
    runs = outcome.plan.runs
    counts = [k or outcome.plan.recipe.num_classes for k in outcome.plan.sampled]
    curves = [
        Curve("base", counts, [found[run.name].base for run in runs]),
        Curve("novel", counts, [found[run.name].novel for run in runs]),
    ]
    figure = plot_curves(curves, title="Accuracy by K", xlabel="K, classes per step", ylabel="top-1 accuracy (%)")
    with style():
        axes = figure.axes[0]
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, ["all" if k is None else str(k) for k in outcome.plan.sampled])
        axes.minorticks_off()
        hard = found[HARD_NAME]
        for value, line, name in zip((hard.base, hard.novel), axes.lines[:2], ("base", "novel"), strict=True):
            axes.axhline(
                value, color=line.get_color(), linestyle=(0, (4, 3)), linewidth=1.3, label=f"{name}, hard prompt"
            )
        axes.set_ylim(bottom=0)
        for legend in list(figure.legends):
            legend.remove()
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _space(study: ShapeWorldStudy, texts: ClassTexts, title: str) -> Figure:
    data, cache = study.test_data, study.test_features()
    shapes = [parse_thing(name).shape for name in data.class_names]
    groups = [shape if shape in _SHOWN_SHAPES else OTHERS for shape in shapes]
    features = texts.encode(study.clip, Vocabulary(data.name, data.class_names)).cpu()
    shown = [i for i, label in enumerate(cache.labels) if groups[label] != OTHERS]
    images = torch.from_numpy(cache.features[shown, 0].astype("float32"))
    classes, pictures = project_classes_and_images(features, images)
    return plot_projection(classes, groups, pictures, [groups[cache.labels[i]] for i in shown], title=title)


def _texts(outcome: Outcome) -> ClassTexts:
    return ClassTexts(load_prompt(outcome.prompts[outcome.best]))


def _pair(score: Score) -> dict[str, float]:
    return dict(zip(_SERIES, (score.base, score.novel), strict=True))


def duration(seconds: float) -> str:
    """ "42 s" or "3 min 07 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
