"""Hand-written prompts with ``{}`` for the class name: published sets, per data set, and free text."""

import difflib

from prompt_pretrain.errors import InputError
from prompt_pretrain.metadata import read_metadata
from prompt_pretrain.registered_vocabularies import canonical_name

_FILE = "prompt_templates.json"
GENERIC_TEMPLATE = "a photo of a {}."
DETECTION_PROMPTS = ("a", "none", "photo", "scene")
PER_DATA_SET = ("own", "ensemble")  # what templates_of knows


def load_templates(spec: str) -> tuple[str, ...]:
    """The templates that ``spec`` names.

    Args:
        spec: a text with ``{}``; a set (``single``, ``imagenet80``, ``imagenet_select_7``, ``vild``); a published
            detection prompt (``a``, ``none``, ``photo``, ``scene``); or a data set (its own template, the generic one
            where it has none).
    Raises:
        InputError: none of these, or a text with more than one ``{}``.
    """
    if "{}" in spec:
        if spec.count("{}") > 1:
            raise InputError(f"template {spec!r} holds {{}} more than once; write it where the class name goes")
        return (spec,)
    content = read_metadata(_FILE)
    name = spec.strip().lower().replace("-", "_")
    if name in content["sets"]:
        return tuple(content["sets"][name])
    if name in content["detection"]:
        return (content["detection"][name],)
    data_set = canonical_name(spec)
    if data_set is not None:
        own = {canonical_name(known): template for known, template in content["data_sets"].items()}
        return (own.get(data_set, GENERIC_TEMPLATE),)
    known = [*content["sets"], *content["detection"]]
    near = difflib.get_close_matches(name, known, 1, 0)[0]
    raise InputError(
        f"unknown template {spec!r}; write {{}} where the class name goes ({GENERIC_TEMPLATE!r}), or name a data set "
        f"or one of {', '.join(known)} (nearest: {near})"
    )


def templates_of(kind: str, data_set: str) -> tuple[str, ...]:
    """Templates that differ from data set to data set.

    Args:
        kind: ``own``, the hand-written template of the set (the generic one where it has none); or ``ensemble``, the
            seven selected ImageNet templates and, but for the ImageNets, the set's own.
        data_set: registered name.
    Raises:
        InputError: another kind.
    """
    if kind not in PER_DATA_SET:
        raise InputError(f"unknown templates per data set {kind!r}; choose one of {', '.join(PER_DATA_SET)}")
    own = (read_metadata(_FILE)["data_sets"].get(data_set, GENERIC_TEMPLATE),)
    if kind == "own":
        return own
    return load_templates("imagenet_select_7") + (() if "ImageNet" in data_set else own)
