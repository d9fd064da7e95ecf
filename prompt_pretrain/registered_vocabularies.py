"""The vocabularies that are known by name: class names, ids and splits of every data set of the suite."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prompt_pretrain.metadata import read_columns, read_metadata

# What a reader returns: keyword arguments of `Vocabulary` (class_names, and where known ids, splits, synonyms).
Fields = dict[str, Any]


def _lvis() -> Fields:
    table = read_columns("lvis_v1_categories.json")
    frequency = table["frequency"]
    splits = {
        "base": _where(f in "fc" for f in frequency),
        "novel": _where(f == "r" for f in frequency),
        "frequent": _where(f == "f" for f in frequency),
        "common": _where(f == "c" for f in frequency),
        "rare": _where(f == "r" for f in frequency),
    }
    synonyms = tuple(map(tuple, table["synonyms"]))
    return {"class_names": table["name"], "ids": table["id"], "splits": splits, "synonyms": synonyms}


def _coco() -> Fields:
    table = read_columns("coco_detection_classes.json")
    splits = {split: _where(s == split for s in table["ov_split"]) for split in ("base", "novel", "unused")}
    splits["generalized"] = _where(s != "unused" for s in table["ov_split"])
    return {"class_names": table["name"], "ids": table["id"], "splits": splits}


def _numbered(file: str) -> Callable[[], Fields]:
    def read() -> Fields:
        table = read_columns(file)
        return {"class_names": table["name"], "ids": table["id"]}

    return read


def _imagenet21k(index: str | None) -> Callable[[], Fields]:
    """The classes with a label in column ``index``, in label order; all in wnid order without one."""

    def read() -> Fields:
        table = read_columns("imagenet21k_classes.json.gz")
        order: Sequence[int] = range(len(table["wnid"]))
        if index is not None:
            labels = table[index]
            order = sorted((row for row in order if labels[row] is not None), key=lambda row: labels[row])
        return {
            "class_names": tuple(table["name"][row] for row in order),
            "ids": tuple(table["wnid"][row] for row in order),
        }

    return read


def _lvis_and_imagenet21k() -> Fields:
    table = read_columns("imagenet21k_classes.json.gz")
    lvis = _lvis()
    num_lvis = len(lvis["class_names"])
    added = sorted((number, row) for row, number in enumerate(table["lvis22k_id"]) if number > num_lvis)
    return {
        "class_names": lvis["class_names"] + tuple(table["name"][row] for _, row in added),
        "ids": lvis["ids"] + tuple(number for number, _ in added),
    }


def _imagenet1k(member: str | None) -> Callable[[], Fields]:
    def read() -> Fields:
        table = read_columns("imagenet1k_classes.json")
        rows = range(len(table["wnid"])) if member is None else _where(table[member])
        return {
            "class_names": tuple(table["name"][row] for row in rows),
            "ids": tuple(table["wnid"][row] for row in rows),
        }

    return read


def _classification(name: str) -> Callable[[], Fields]:
    return lambda: {"class_names": tuple(read_metadata("classification_classes.json")[name])}


def _segmentation(name: str) -> Callable[[], Fields]:
    def read() -> Fields:
        data = read_metadata("segmentation_classes.json")[name]
        splits = {split: tuple(data[f"{split}_index"]) for split in ("seen", "unseen") if f"{split}_index" in data}
        if "isthing" in data:
            splits["thing"] = _where(data["isthing"])
            splits["stuff"] = _where(not thing for thing in data["isthing"])
        return {"class_names": tuple(data["classes"]), "splits": splits}

    return read


def _shapeworld() -> Fields:
    from prompt_pretrain.shapeworld.classes import things

    names = {split: [thing.name for thing in things(split)] for split in ("all", "base", "novel")}
    index = {name: number for number, name in enumerate(names["all"])}
    splits = {split: tuple(index[name] for name in names[split]) for split in ("base", "novel")}
    return {"class_names": tuple(names["all"]), "splits": splits}


def _where(flags: Iterable[Any]) -> tuple[int, ...]:
    return tuple(index for index, flag in enumerate(flags) if flag)


READERS: Mapping[str, Callable[[], Fields]] = {
    "lvis_v1": _lvis,
    "coco": _coco,
    "objects365": _numbered("objects365_v2_classes.json"),
    "openimages": _numbered("openimages_challenge2019_classes.json"),
    "imagenet21k": _imagenet21k("winter21_P_index"),
    "imagenet21k_fall11": _imagenet21k("fall11_P_index"),
    "imagenet21k_full": _imagenet21k(None),
    "lvis_22k": _lvis_and_imagenet21k,
    "imagenet1k": _imagenet1k(None),
    "imagenet_a": _imagenet1k("in_a"),
    "imagenet_r": _imagenet1k("in_r"),
    "caltech101": _classification("Caltech101"),
    "oxford_pets": _classification("OxfordPets"),
    "stanford_cars": _classification("StanfordCars"),
    "oxford_flowers": _classification("OxfordFlowers"),
    "food101": _classification("Food101"),
    "fgvc_aircraft": _classification("FGVCAircraft"),
    "sun397": _classification("SUN397"),
    "dtd": _classification("DescribableTextures"),
    "eurosat": _classification("EuroSAT"),
    "ucf101": _classification("UCF101"),
    "coco_stuff": _segmentation("coco_stuff_171"),
    "voc": _segmentation("voc_20"),
    "pcontext": _segmentation("pascal_context_59"),
    "ade20k": _segmentation("ade20k_150"),
    "ade20k_full": _segmentation("ade20k_847"),
    "cityscapes": _segmentation("cityscapes_19"),
    "shapeworld": _shapeworld,
}

# Other spellings; case, blanks, dashes and underscores never matter.
ALIASES: Mapping[str, str] = {
    "lvis": "lvis_v1",
    "coco_2017": "coco",
    "coco80": "coco",
    "objects365_v2": "objects365",
    "o365": "objects365",
    "oid": "openimages",
    "open_images": "openimages",
    "imagenet_21k": "imagenet21k",
    "imagenet21k_p": "imagenet21k",
    "lvis_21k": "lvis_22k",
    "imagenet": "imagenet1k",
    "imagenetv2": "imagenet1k",
    "imagenet_sketch": "imagenet1k",
    "caltech": "caltech101",
    "pets": "oxford_pets",
    "cars": "stanford_cars",
    "flowers": "oxford_flowers",
    "flowers102": "oxford_flowers",
    "food": "food101",
    "aircraft": "fgvc_aircraft",
    "sun": "sun397",
    "describable_textures": "dtd",
    "ucf": "ucf101",
    "coco_stuff_171": "coco_stuff",
    "voc20": "voc",
    "voc2012": "voc",
    "pascal_voc": "voc",
    "pascal_context": "pcontext",
    "pascal_context_59": "pcontext",
    "ade20k_150": "ade20k",
    "ade20k_847": "ade20k_full",
    "cityscapes_19": "cityscapes",
}


def fold(name: str) -> str:
    """The form in which names are compared."""
    return "".join(character for character in name.casefold() if character not in " -_")


def canonical_name(name: str) -> str | None:
    """The registered name that ``name`` spells, None if there is none."""
    return _FOLDED.get(fold(name))


_FOLDED = {fold(name): name for name in READERS} | {fold(alias): name for alias, name in ALIASES.items()}
