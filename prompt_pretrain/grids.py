"""The tables and figures of the POMP paper (arXiv 2304.04704) as grids of training runs, at two scales.

``published`` is the paper's own setting; ``shapeworld`` asks the same questions of the synthetic world in minutes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prompt_pretrain.classification.paper_results import CROSS_DATASET, CROSS_DOMAIN
from prompt_pretrain.errors import InputError


@dataclass(frozen=True)
class GridRow:
    """One setting to train and evaluate.

    Attributes:
        name: in the table.
        config: YAML below ``configs/prompt_pretrain``; empty for a row without training.
        overrides: ``KEY VALUE`` pairs.
        texts: templates that stand for the classes where nothing is trained.
        paper: the paper's numbers for this row, as text; "" where it has none.
        series, x: line and place in a plot of curves.
    """

    name: str
    config: str = ""
    overrides: tuple[str, ...] = ()
    texts: str = ""
    paper: str = ""
    series: str = ""
    x: float = 0.0


@dataclass(frozen=True)
class Grid:
    """A table: ``key`` on the command line, ``paper_columns`` says what the paper's numbers are.

    ``xlabel`` makes its plot one of curves; ``costs`` adds training time and memory.
    """

    key: str
    title: str
    rows: tuple[GridRow, ...]
    paper_columns: str = ""
    xlabel: str = ""
    costs: bool = False


@dataclass(frozen=True)
class Scale:
    """What the grids vary on one kind of data.

    Attributes:
        pomp: config of POMP. baselines: folder of the baselines' configs.
        evaluation: column of the tables -> data sets whose accuracies it is the mean of.
        default_k: classes per step where K is not varied. sampled: the K's of Table 8. margin_k: those of Table 9.
        cost_k: those of Table 3. shots, lengths: of Figure 9.
        imagenet1k: overrides that train POMP in Table 3's setting.
        source_21k: overrides of baselines that learn from the large vocabulary in Table 1.
    """

    name: str
    pomp: str
    baselines: str
    evaluation: Mapping[str, tuple[str, ...]]
    default_k: int
    sampled: tuple[int, ...]
    margin_k: tuple[int, ...]
    cost_k: tuple[int, ...]
    shots: tuple[int, ...]
    lengths: tuple[int, ...]
    imagenet1k: tuple[str, ...] = ()
    source_21k: tuple[str, ...] = ()

    def row(self, name: str, k: int | str | None = None, *more: str, **options: object) -> GridRow:
        """A row of POMP with K classes per step."""
        pairs = ("TRAINER.POMP.UPDATE_CLASS_NUM", str(self.default_k if k is None else k), *more)
        return GridRow(name, self.pomp, pairs, **options)  # type: ignore[arg-type]

    def baseline(self, name: str, config: str, *overrides: str, paper: str = "") -> GridRow:
        return GridRow(name, f"{self.baselines}/{config}.yaml", overrides, paper=paper)


SCALES = {
    "published": Scale(
        "published",
        "imagenet21k_vit_b16_ep5.yaml",
        "baselines",
        {
            "ImageNet-21K": ("ImageNet21K",),
            "cross-dataset": CROSS_DATASET,
            "cross-domain": CROSS_DOMAIN,
        },
        default_k=1000,
        sampled=(100, 500, 1000),
        margin_k=(319, 1000),
        cost_k=(128, 256, 512),
        shots=(1, 2, 4, 8, 16),
        lengths=(2, 4, 8, 16),
        imagenet1k=("DATASET.NAME", "ImageNet", "OPTIM.MAX_EPOCH", "50"),
        source_21k=("DATASET.NAME", "ImageNet21K"),
    ),
    "shapeworld": Scale(
        "shapeworld",
        "baselines/shapeworld/pomp.yaml",
        "baselines/shapeworld",
        {"base": ("ShapeWorld",), "novel": ("ShapeWorldNovel",)},
        default_k=32,
        sampled=(8, 32, 128),
        margin_k=(8,),
        cost_k=(8, 32, 128),
        shots=(1, 2, 4, 8),
        lengths=(1, 4, 16),
    ),
}


def paper_grid(key: str, scale: Scale) -> Grid:
    """The grid of one table or figure.

    Raises:
        InputError: there is none of that name.
    """
    if key not in _GRIDS:
        raise InputError(f"there is no grid {key!r}; choose one of {', '.join(_GRIDS)}, or all")
    return _GRIDS[key](scale)


def grid_names() -> tuple[str, ...]:
    return tuple(_GRIDS)


def _methods(scale: Scale) -> Grid:
    large = scale.source_21k
    rows = (
        GridRow("hard prompt", texts="a photo of a {}.", paper="17.5 / 19.8 / 21.8"),
        GridRow("class name alone", texts="{}."),
        GridRow("80 templates", texts="imagenet80", paper="18.8 / 20.9 / 23.5"),
        scale.baseline("linear probe", "linear_probe", *large, paper="6.5 / 18.2 / 20.9"),
        scale.baseline("CoOp", "coop", paper="16.6 / 18.1 / 20.8"),
        scale.baseline("CoCoOp", "cocoop"),
        scale.baseline("LASP", "lasp"),
        scale.baseline("VPT, shallow", "vpt_shallow", *large),
        scale.baseline("VPT, deep", "vpt_deep", *large, paper="– / 21.8 / 24.8"),
        scale.baseline("MaPLe", "maple", paper="– / 21.6 / 24.2"),
        scale.row(f"POMP, K = {scale.default_k}", paper="20.2 / 22.2 / 25.3"),
        scale.row("POMP, K = all", "all"),
    )
    return Grid("table1", "Methods (Table 1)", rows, "ImageNet-21K, RN50 / ViT-B/32 / ViT-B/16")


def _costs(scale: Scale) -> Grid:
    paper = {128: "71.2 / 5.3 / 2.7", 256: "71.4 / 8.8 / 3.3", 512: "71.6 / 15.9 / 4.2"}
    rows = [
        scale.baseline("CoOp", "coop", paper="71.9 / 28.2 / 5.9"),
        scale.baseline("CoCoOp", "cocoop", paper="70.1 / 28.3 / 27.5"),
    ]
    rows += [scale.row(f"POMP, K = {k}", k, *scale.imagenet1k, paper=paper.get(k, "")) for k in scale.cost_k]
    rows.append(scale.row("POMP, K = all", "all", *scale.imagenet1k))
    return Grid("table3", "Accuracy and cost (Table 3)", tuple(rows), "ImageNet-1K: accuracy / GB / hours", costs=True)


def _number_of_classes(scale: Scale) -> Grid:
    paper = {100: "24.1 / 65.5 / 59.5", 500: "24.9 / 66.5 / 60.0", 1000: "25.3 / 67.0 / 60.8"}
    rows = [scale.row(f"K = {k}", k, paper=paper.get(k, "")) for k in scale.sampled]
    off = ("TRAINER.POMP.LOCAL_CORRECTION", "False")
    known = "25.0 / 65.8 / 59.8" if scale.default_k == 1000 else ""
    rows.append(scale.row(f"K = {scale.default_k}, no correction", None, *off, paper=known))
    rows.append(scale.row("K = all", "all"))
    return Grid("table8", "Number of classes and local correction (Table 8)", tuple(rows), _THREE)


def _margins(scale: Scale) -> Grid:
    paper = {319: ("65.2", "65.7", "66.2", "66.5"), 1000: ("65.8", "66.1", "67.0", "66.4")}
    rows = []
    for k in scale.margin_k:
        for margin, number in zip(("0.0", "0.5", "1.0", "1.5"), paper.get(k, ("",) * 4), strict=True):
            place = {"series": f"K = {k}", "x": float(margin)}
            rows.append(scale.row(f"K = {k}, m = {margin}", k, "TRAINER.POMP.MARGIN", margin, paper=number, **place))
    for x in (0.0, 1.5):
        rows.append(scale.row("K = all", "all", series="K = all", x=x))
    return Grid("table9", "Fixed margins (Table 9)", tuple(rows), "cross-dataset", xlabel="margin m")


def _sampling(scale: Scale) -> Grid:
    paper = {"random": "25.3 / 67.0 / 60.8", "frequency": "24.9 / 66.2 / 60.1", "similarity": "23.6 / 64.2 / 59.2"}
    modes = {
        "random": "uniform",
        "frequency": "by frequency",
        "similarity": "similar classes",
        "easy": "unlike classes",
    }
    rows = [
        scale.row(name, None, "TRAINER.POMP.NEG_SAMPLING_MODE", mode, paper=paper.get(mode, ""))
        for mode, name in modes.items()
    ]
    rows.append(scale.row("K = all", "all"))
    return Grid("table12", f"Proposal distribution, K = {scale.default_k} (Table 12)", tuple(rows), _THREE)


def _shots(scale: Scale) -> Grid:
    return _curves(scale, "shots", "Images per class (Figure 9)", "images per class", "DATASET.NUM_SHOTS", scale.shots)


def _lengths(scale: Scale) -> Grid:
    # Random starts: words would fix the length.
    start = ("TRAINER.POMP.CTX_INIT", "")
    title = "Prompt length (Figure 9)"
    return _curves(scale, "length", title, "context vectors", "TRAINER.POMP.N_CTX", scale.lengths, *start)


def _curves(scale: Scale, key: str, title: str, xlabel: str, setting: str, values: tuple[int, ...], *more: str) -> Grid:
    rows = [
        scale.row(f"K = {k}, {value}", k, setting, str(value), *more, series=f"K = {k}", x=float(value))
        for k in (scale.default_k, "all")
        for value in values
    ]
    return Grid(key, title, tuple(rows), xlabel=xlabel)


def _hierarchy(scale: Scale) -> Grid:
    rows = [scale.row("flat labels", "all")]
    rows += [
        scale.row(name, "all", "TRAINER.HIERARCHY.MODE", mode, *more)
        for name, mode, more in (
            ("parents are right too", "positives", ()),
            ("0.1 to the siblings", "smooth", ("TRAINER.HIERARCHY.WEIGHT", "0.1")),
        )
    ]
    return Grid("hierarchy", "Hierarchical labels, K = all", tuple(rows))


_THREE = "ImageNet-21K / cross-dataset / cross-domain"
_GRIDS: dict[str, Callable[[Scale], Grid]] = {
    "table1": _methods,
    "table3": _costs,
    "table8": _number_of_classes,
    "table9": _margins,
    "table12": _sampling,
    "shots": _shots,
    "length": _lengths,
    "hierarchy": _hierarchy,
}
