"""From the options of a command to a detector or segmenter with its vocabulary."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_net import find_task

from prompt_pretrain.class_groups import ClassGroups, read_parents
from prompt_pretrain.errors import InputError
from prompt_pretrain.run_setup import find_config_file
from prompt_pretrain.vocabulary import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from detection.api import Detector
    from segmentation.api import Segmenter

__all__ = ["add_model_options", "add_vocabulary_options", "check_options", "choose_classes", "load_model"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TASKS = ("detection", "segmentation")
# Files of class embeddings that Detic and POMP publish: vocabulary -> part of the name before "_clip_…".
_PUBLISHED_ROWS = {
    "a": {"lvis_v1": "lvis_v1_clip_a+cname", "objects365": "o365_clip_a+cnamefix", "openimages": "oid_clip_a+cname"}
    | {"coco": "coco_clip_a+cname"},
    "pomp": {"lvis_v1": "lvis_v1_clip_pomp+cname", "objects365": "o365_fixname_clip_pomp+cname"}
    | {"coco": "coco_clip_pomp+cname"},
}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--config-file", metavar="FILE", required=True, help="a YAML file, or the name of one in configs/")
    add("--weights", metavar="FILE", help="checkpoint; default: MODEL.WEIGHTS of the config")
    add("--task", choices=TASKS, help="in place of what MODEL.META_ARCHITECTURE of the config says")
    add("--device", help="cpu, cuda or cuda:1; default: cuda where there is one")
    add("--cpu", action="store_true", help="the same as --device cpu")
    add("--batch-size", type=int, default=4, metavar="N", help="images per step of the model (default: 4)")
    add("--confidence-threshold", type=float, default=0.5, metavar="P", help="least score to show (default: 0.5)")
    add("--pred_all_class", "--pred-all-class", action="store_true", help="a box may have several classes")


def add_vocabulary_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("vocabulary and prompt")
    add = group.add_argument
    add(
        "--vocabulary",
        metavar="NAME",
        help="lvis, coco, objects365, openimages, cocostuff, ade20k, voc, pcontext, any other registered name, or "
        "custom; default: the classes of the model",
    )
    add(
        "--custom_vocabulary",
        "--custom-vocabulary",
        metavar="WORDS",
        help="'a,b,c', a .txt file with one class per line or a COCO json; 'car|automobile' has two names",
    )
    add("--class-embeddings", metavar="FILE", help="ready rows (.npy, .safetensors); --vocabulary may name them")
    add(
        "--prompt",
        nargs="+",
        metavar="P",
        help="a learned prompt's file, a template with {}, several templates or a set of them (imagenet80, vild), "
        "whose features are averaged; default: the prompt that the model was trained with",
    )
    add("--clip", metavar="NAME", help="the CLIP of --prompt; default: the model's")
    add("--synonyms", action="store_true", help="look for all names of a class that the vocabulary knows")
    add("--background", metavar="WORDS", help="'wall,floor,other': words for what is no class")
    add("--parents", metavar="RULES", help="'vehicle: car, bus; pet: dog, cat' or a file: report parents of classes")


def check_options(args: argparse.Namespace) -> None:
    """Fail for what is wrong whatever the model is.

    Raises:
        InputError: numbers out of range, options that exclude each other.
    """
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: it must be at least 1")
    if not 0 <= args.confidence_threshold <= 1:
        raise InputError(f"--confidence-threshold {args.confidence_threshold}: it must lie between 0 and 1")
    if args.cpu and args.device not in (None, "cpu"):
        raise InputError(f"--cpu and --device {args.device} exclude each other; give one of them")
    if args.vocabulary == "custom" and not args.custom_vocabulary:
        raise InputError("--vocabulary custom needs the words: --custom-vocabulary 'red car,traffic cone'")
    if args.custom_vocabulary and args.vocabulary not in (None, "custom"):
        raise InputError(f"--vocabulary {args.vocabulary} and --custom-vocabulary exclude each other; give one of them")
    if args.class_embeddings and (args.prompt or args.clip):
        raise InputError("--class-embeddings are ready, --prompt and --clip would change nothing; leave them out")
    helpers = [name for name in ("synonyms", "background", "parents") if getattr(args, name)]
    if helpers and args.class_embeddings:
        raise InputError(f"--{helpers[0]} needs names that can be encoded; leave out --class-embeddings")
    if args.prompt and len(args.prompt) > 1 and not all("{}" in text for text in args.prompt):
        odd = next(text for text in args.prompt if "{}" not in text)
        raise InputError(f"--prompt: of several templates {odd!r} has no {{}}; write it where the class name goes")


def choose_classes(args: argparse.Namespace, own: Sequence[str] = ()) -> Vocabulary | ClassGroups | None:
    """What to look for; None for the classes of the model.

    Args:
        own: the model's classes, which the helpers apply to where no vocabulary is given.
    Raises:
        InputError: an unknown or empty vocabulary, helpers that do not fit it.
    """
    vocabulary = None
    if args.custom_vocabulary:
        vocabulary = load_vocabulary(_as_list(args.custom_vocabulary))
    elif args.vocabulary:
        vocabulary = load_vocabulary(args.vocabulary)
    typed_synonyms = bool(args.custom_vocabulary) and vocabulary is not None and _from_words(args.custom_vocabulary)
    wants_synonyms = args.synonyms or (typed_synonyms and bool(vocabulary and vocabulary.synonyms))
    if not (wants_synonyms or args.background or args.parents):
        return vocabulary
    if args.synonyms and (vocabulary is None or not vocabulary.synonyms):
        name = vocabulary.name if vocabulary is not None else "of the model"
        raise InputError(f"--synonyms: the vocabulary {name} knows none; lvis does, or type 'car|automobile'")
    if vocabulary is None:
        vocabulary = Vocabulary("of the model", tuple(own))
    words = [word.strip() for word in args.background.split(",") if word.strip()] if args.background else ()
    groups = ClassGroups.of(vocabulary, synonyms=wants_synonyms, background=words)
    return groups.with_parents(read_parents(args.parents)) if args.parents else groups


def load_model(args: argparse.Namespace) -> "tuple[str, Detector | Segmenter]":
    """The task, and a model that looks for the chosen classes.

    Raises:
        InputError: whatever does not fit together.
    """
    check_options(args)
    if args.vocabulary or args.custom_vocabulary:
        choose_classes(args)  # bad words are found before a model is loaded
    args.config_file = str(_find_config(args.config_file))
    task = find_task(args)
    device = "cpu" if args.cpu else args.device
    if task == "detection":
        import detection

        settings = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", args.confidence_threshold]
        settings += ["MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL", not args.pred_all_class]
        model: Any = detection.load(args.config_file, args.weights, device, overrides=[*args.opts, *settings])
    else:
        import segmentation

        model = segmentation.load(args.config_file, args.weights, device, overrides=args.opts)
    _set_classes(model, args)
    if not model.class_names:
        raise InputError("this model does not know its classes; give --vocabulary or --custom-vocabulary")
    return task, model


def _set_classes(model: Any, args: argparse.Namespace) -> None:
    classes = choose_classes(args, model.class_names)
    prompt = args.prompt if args.prompt is None or len(args.prompt) > 1 else args.prompt[0]
    if args.class_embeddings:
        model.set_classes(args.class_embeddings, names=classes.class_names if classes else None)
    elif classes is not None:
        rows = _published_rows(model.cfg, classes) if prompt is None and args.clip is None else None
        if rows is not None and isinstance(classes, Vocabulary):
            model.set_classes(rows, names=classes.class_names)
        else:
            names = classes.class_names if isinstance(classes, Vocabulary) else classes
            model.set_classes(names, prompt=_texts(prompt), clip=args.clip)
    elif prompt is not None or args.clip is not None:
        model.set_classes(model.class_names, prompt=_texts(prompt), clip=args.clip)


def _texts(prompt: str | list[str] | None) -> Any:
    from prompt_pretrain.class_texts import ClassTexts

    return ClassTexts.of(prompt) if isinstance(prompt, list) else prompt


def _published_rows(cfg: Any, classes: Vocabulary | ClassGroups) -> str | None:
    """The published file of this vocabulary's embeddings, if it is there and of the kind that the model knows."""
    path = Path(cfg.MODEL.ROI_BOX_HEAD.get("ZEROSHOT_WEIGHT_PATH", ""))
    if not isinstance(classes, Vocabulary) or cfg.MODEL.CLASS_EMBEDDINGS.PROMPT:
        return None
    for kind, files in _PUBLISHED_ROWS.items():
        name = files.get(classes.name)
        if name is not None and f"_clip_{kind}+" in path.name and (path.parent / f"{name}.npy").is_file():
            return str(path.parent / f"{name}.npy")
    return None


def _find_config(given: str) -> Path:
    """A YAML file, or the one of this name in the configs of either task."""
    if Path(given).suffix in (".yaml", ".yml"):
        return find_config_file(given, CONFIGS)
    for task in TASKS:
        try:
            return find_config_file(given, CONFIGS / task)
        except InputError as error:
            if not str(error).startswith("no config"):
                raise
    raise InputError(f"no config {given!r} below {CONFIGS}; give a name from there or a .yaml file")


def _as_list(words: str) -> str:
    """A single word is a list of one; files stay as they are."""
    is_file = Path(words).suffix.lower() in (".txt", ".json") or Path(words).is_file()
    return words if is_file or "," in words else f"{words},"


def _from_words(words: str) -> bool:
    """Whether the text is typed words or a text file, and not a data set with synonyms of its own."""
    return Path(words).suffix.lower() != ".json"
