"""What trainings start with: devices, and errors of detectron2's loaders as those of a command."""

import pytest
import torch

from prompt_pretrain.errors import InputError
from prompt_pretrain.run_setup import choose_device, explained_data


@pytest.mark.parametrize("error", [ValueError("a.json: bad"), KeyError("a.json: bad"), AssertionError("a.json: bad")])
def test_what_loaders_say_of_a_file_is_bad_input(error):
    with pytest.raises(InputError, match="^the data set cannot be loaded: a.json: bad$"), explained_data():
        raise error


def test_our_own_errors_stay_as_they_are():
    with pytest.raises(InputError, match="^b.json$"), explained_data():
        raise InputError("b.json")


def test_a_device_that_is_not_there_is_bad_input(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(None) == choose_device("cpu") == "cpu"
    with pytest.raises(InputError, match="no device cuda here, 0 CUDA devices are usable"):
        choose_device("cuda")
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(None) == "cuda" and choose_device(torch.device("cuda:1")) == "cuda:1"
    with pytest.raises(InputError, match="no device cuda:2 here"):
        choose_device("cuda:2")
