"""Hand-written prompts with ``{}`` for the class name: published sets, per data set, and free text."""

import difflib

from prompt_pretrain.errors import InputError
from prompt_pretrain.metadata import read_metadata
from prompt_pretrain.registered_vocabularies import canonical_name

_FILE = "prompt_templates.json"
GENERIC_TEMPLATE = "a photo of a {}."
DETECTION_PROMPTS = ("a", "none", "photo", "scene")


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
