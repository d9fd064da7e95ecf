"""ShapeWorld: a deterministic synthetic world with a compositional vocabulary, to run everything without downloads.

Things are coloured shapes with surface patterns ("striped red star"), grounds are textures ("sand"). Pictures come in
several rendering styles and with defects, so that neither recognition nor the wording of a prompt is trivial.
"""

from pathlib import Path

from prompt_pretrain.shapeworld.classes import SPLITS, Thing, class_names, parse_thing, things

# Weights of the CLIP that tools/train_tiny_clip.py trained on the base classes.
TINY_CLIP_NAME = "shapeworld-tiny"  # of these weights, wherever a CLIP is named
TINY_CLIP = Path(__file__).with_name("tiny_clip.safetensors")

__all__ = ["SPLITS", "TINY_CLIP", "TINY_CLIP_NAME", "Thing", "class_names", "parse_thing", "things"]
