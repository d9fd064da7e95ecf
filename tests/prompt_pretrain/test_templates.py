import open_clip
import pytest

from prompt_pretrain.errors import InputError
from prompt_pretrain.templates import load_templates, templates_of


def test_sets_are_the_published_ones():
    assert load_templates("imagenet80") == tuple(f("{}") for f in open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert load_templates("imagenet-select-7") == tuple(f("{}") for f in open_clip.SIMPLE_IMAGENET_TEMPLATES)
    assert len(load_templates("vild")) == 14
    assert load_templates("single") == ("a sculpture of a {}.",)


def test_detection_prompts_and_data_sets():
    assert load_templates("a") == ("a {}",)
    assert load_templates("none") == ("{}",)
    assert load_templates("scene") == ("a photo of a {} in the scene",)
    assert load_templates("EuroSAT") == ("a centered satellite photo of {}.",)
    assert load_templates("oxford_pets") == load_templates("pets") == ("a photo of a {}, a type of pet.",)
    assert load_templates("lvis") == ("a photo of a {}.",)


def test_free_text_needs_one_place_for_the_name():
    assert load_templates("my {}") == ("my {}",)
    with pytest.raises(InputError, match="more than once"):
        load_templates("{} and {}")
    with pytest.raises(InputError, match=r"unknown template 'imagnet80'; write \{\} .*nearest: imagenet80"):
        load_templates("imagnet80")


def test_templates_that_differ_between_data_sets():
    assert templates_of("own", "EuroSAT") == ("a centered satellite photo of {}.",)
    assert templates_of("own", "ImageFolder") == ("a photo of a {}.",)
    seven = load_templates("imagenet_select_7")
    assert templates_of("ensemble", "Food101") == (*seven, "a photo of {}, a type of food.")
    assert templates_of("ensemble", "ImageNetSketch") == seven
    with pytest.raises(InputError, match="unknown templates per data set 'best'; choose one of own, ensemble"):
        templates_of("best", "Food101")
