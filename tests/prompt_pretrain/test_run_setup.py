"""Errors of detectron2's loaders as those of a command."""

import pytest

from prompt_pretrain.errors import InputError
from prompt_pretrain.run_setup import explained_data


@pytest.mark.parametrize("error", [ValueError("a.json: bad"), KeyError("a.json: bad"), AssertionError("a.json: bad")])
def test_what_loaders_say_of_a_file_is_bad_input(error):
    with pytest.raises(InputError, match="^the data set cannot be loaded: a.json: bad$"), explained_data():
        raise error


def test_our_own_errors_stay_as_they_are():
    with pytest.raises(InputError, match="^b.json$"), explained_data():
        raise InputError("b.json")
