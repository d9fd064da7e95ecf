"""What the bundled helpers do beyond detectron2's: downloads, left-out names, whole files, clear errors."""

import http.server
import importlib.util
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.utils import comm
from detectron2.utils.atomic import atomic_write
from detectron2.utils.colormap import colormap, random_colors
from detectron2.utils.file_io import PathManager, _ModelZooHandler
from detectron2.utils.logger import log_first_n, setup_logger
from detectron2.utils.registry import Registry
from detectron2.utils.serialize import PicklableWrapper


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("detectron2.config", "LazyConfig"),
        ("detectron2.config", "LazyCall"),
        ("detectron2.config", "instantiate"),
        ("detectron2.model_zoo", "get_config_file"),
        ("detectron2.export", "TracingAdapter"),
    ],
)
def test_left_out_names_say_that_the_real_one_has_them(module, name):
    with pytest.raises(ImportError, match=f"^{module}.{name} needs the real detectron2"):
        exec(f"from {module} import {name}")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from detectron2.config import nothing")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of the files in tmp_path/files; the cache is in tmp_path/cache. Gives its address."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files" / "sub").mkdir(parents=True)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "files"))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_checkpoints_and_configs_come_from_urls(server, tmp_path, monkeypatch):
    files = tmp_path / "files" / "sub"
    torch.save({"model": {"weight": torch.ones(2, 2)}}, files / "w.pth")
    (files / "base.yaml").write_text("VERSION: 2\nSEED: 4\n")
    (files / "child.yaml").write_text("_BASE_: base.yaml\n")
    model = nn.Linear(2, 2)
    DetectionCheckpointer(model).load(f"{server}sub/w.pth?matching_heuristics=True")
    assert (model.weight == 1).all()
    cfg = get_cfg()
    cfg.merge_from_file(f"{server}sub/child.yaml")
    assert cfg.SEED == 4
    monkeypatch.setattr(_ModelZooHandler, "FOLDER", server)
    assert PathManager.get_local_path("detectron2://sub/w.pth") == str(tmp_path / "cache" / "sub" / "w.pth")
    assert PathManager.exists("detectron2://sub/w.pth")


def test_a_failed_download_names_the_address_and_the_place_for_the_file(server, tmp_path, monkeypatch):
    monkeypatch.setattr(_ModelZooHandler, "FOLDER", server)
    place = tmp_path / "cache" / "sub" / "no.pth"
    with pytest.raises(OSError, match=f"cannot download {server}sub/no.pth .*404.*put the file at {place}"):
        DetectionCheckpointer(nn.Linear(2, 2)).load("detectron2://sub/no.pth")
    place.write_bytes(b"x")
    assert PathManager.get_local_path("detectron2://sub/no.pth") == str(place)
    assert not PathManager.isfile(f"{server}nowhere")
    with pytest.raises((ValueError, AssertionError)):
        PathManager.open("detectron2://sub/no.pth", "w")


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(str(path)) as file:
        file.write("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    with atomic_write(str(path)) as file:
        file.write("new é")
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "new é"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_registry_lists_what_it_knows():
    registry = Registry("THING")
    registry.register(nn.Linear)
    with pytest.raises(KeyError, match="Registered: Linear; import the module that registers it"):
        registry.get("Liner")


def test_functions_that_pickle_refuses_need_cloudpickle():
    wrapped = PicklableWrapper(lambda x: x + 1)
    if importlib.util.find_spec("cloudpickle") is None:
        with pytest.raises(pickle.PicklingError, match="lambda.*install cloudpickle"):
            pickle.dumps(wrapped)
    else:
        assert pickle.loads(pickle.dumps(wrapped))(1) == 2


def test_palette_is_used_up_before_colours_repeat():
    count = len(colormap())
    assert len(np.unique(random_colors(count), axis=0)) == count
    assert random_colors(count + 3).shape == (count + 3, 3)
    assert random_colors(0).shape == (0, 3)
    with pytest.raises(ValueError, match="maximum of a colour is 2"):
        colormap(maximum=2)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="key of log_first_n is 'line'"):
        log_first_n(20, "x", key="line")
    with pytest.raises(ValueError, match="1 processes cannot be 2 on each machine"):
        comm.create_local_process_group(2)
    with pytest.raises(AssertionError, match="Local process group is not created"):
        comm.get_local_process_group()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
def test_a_log_on_a_full_disk_is_one_line_and_not_a_traceback_per_message(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    logger = setup_logger(str(tmp_path), name="test_full_disk")
    for _ in range(3):
        logger.info("hello")
    said = capsys.readouterr()
    assert said.out.count("hello") == 3
    assert said.err == f"{tmp_path}/log.txt: No space left on device; messages are missing there\n"
