"""Loggers, registries, paths and other helpers."""

import logging
import pickle

import numpy as np
import pytest
import torch

from detectron2.utils import logger as d2_logger
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.colormap import colormap, random_color
from detectron2.utils.env import TORCH_VERSION
from detectron2.utils.file_io import PathHandler, PathManager
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper


@pytest.fixture
def fresh_logger(request):
    """The name of a logger that nobody has set up."""
    name = f"test_{request.node.name}"
    yield name
    for handler in logging.getLogger(name).handlers:
        handler.close()


def test_logs_go_to_standard_output_and_a_file(fresh_logger, tmp_path, capsys):
    logger = d2_logger.setup_logger(str(tmp_path / "out"), name=fresh_logger, abbrev_name="short")
    assert d2_logger.setup_logger(str(tmp_path / "out"), name=fresh_logger, abbrev_name="short") is logger
    logger.info("hello")
    logging.getLogger(f"{fresh_logger}.sub").warning("careful")
    for text in (capsys.readouterr().out, (tmp_path / "out" / "log.txt").read_text()):
        assert text.count("hello") == 1
        assert "short.sub" in text
        assert "WARNING" in text
    assert not logger.propagate


def test_other_ranks_write_only_a_file_of_their_own(fresh_logger, tmp_path, capsys):
    d2_logger.setup_logger(str(tmp_path / "all.log"), distributed_rank=2, name=fresh_logger).info("hello")
    assert capsys.readouterr().out == ""
    assert "hello" in (tmp_path / "all.log.rank2").read_text()


def test_messages_that_repeat(caplog, fresh_logger):
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            d2_logger.log_first_n(logging.INFO, "first", n=2)
            d2_logger.log_every_n(logging.INFO, "every", n=2)
            d2_logger.log_every_n_seconds(logging.INFO, "seconds", n=1000)
        for _ in range(2):
            d2_logger.log_first_n(logging.INFO, "same line, another place", key="message", name=fresh_logger)
        d2_logger.log_first_n(logging.INFO, "same line, another place", key="message", name=fresh_logger)
        d2_logger.log_first_n(logging.INFO, "first")
    counts = {text: caplog.messages.count(text) for text in caplog.messages}
    assert counts == {"first": 3, "every": 3, "seconds": 1, "same line, another place": 1}


def test_small_table():
    lines = d2_logger.create_small_table({"AP": 12.34567, "loss": 1}).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["AP", "loss"]
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == ["12.346", "1"]


def test_registry():
    registry = Registry("THING")

    @registry.register()
    class Thing:
        pass

    assert registry.get("Thing") is Thing
    assert "Thing" in registry
    with pytest.raises(KeyError, match="No object named 'Thong' found in 'THING' registry!"):
        registry.get("Thong")
    with pytest.raises(AssertionError, match="already registered"):
        registry.register(Thing)


def test_locate_finds_nested_names():
    assert locate("torch.nn.Conv2d") is torch.nn.Conv2d
    assert locate("torch.nn.Conv2d.forward") is torch.nn.Conv2d.forward
    assert locate("collections") is __import__("collections")
    for name in ("torch.nn.Conv9d", "no_such_module.x", "collections.OrderedDict.x"):
        with pytest.raises(ImportError, match=name):
            locate(name)


def test_out_of_memory_is_retried_then_computed_on_the_cpu():
    calls = []

    @retry_if_cuda_oom
    def add(x, *, y):
        """Adds."""
        calls.append(x)
        if len(calls) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")
        return x + y

    assert add(torch.ones(1), y=2).item() == 3
    assert len(calls) == 3
    assert add.__doc__ == "Adds."

    @retry_if_cuda_oom
    def fail():
        calls.append(None)
        raise RuntimeError("other")

    with pytest.raises(RuntimeError, match="other"):
        fail()
    assert len(calls) == 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_out_of_memory_on_a_gpu():
    @retry_if_cuda_oom
    def huge(x):
        if x.is_cuda:
            return x.new_empty(2**60)
        return x + 1

    assert huge(torch.ones(1, device="cuda")).device.type == "cpu"


def double(x):
    return 2 * x


def test_wrapped_functions_travel():
    wrapped = pickle.loads(pickle.dumps(PicklableWrapper(PicklableWrapper(max))))
    assert wrapped(1, 3) == 3
    assert wrapped.__name__ == "max"
    assert PicklableWrapper(double)(2) == 4


def test_colours():
    palette = colormap(rgb=True, maximum=1)
    assert palette.shape[1] == 3
    assert len(np.unique(palette, axis=0)) >= 60
    assert palette.min() >= 0
    assert palette.max() <= 1
    np.testing.assert_allclose(colormap(rgb=False, maximum=255), palette[:, ::-1] * 255, atol=1e-4)
    assert random_color(rgb=True, maximum=255).shape == (3,)


def test_environment_names_the_versions():
    text = collect_env_info()
    assert torch.__version__ in text
    assert "detectron2" in text
    assert TORCH_VERSION[0] >= 2


def test_path_manager_reads_local_and_registered_paths(tmp_path):
    (tmp_path / "a.txt").write_text("hello")

    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["testing://"]

        def _get_local_path(self, path, force=False, **kwargs):
            return str(tmp_path / path.removeprefix("testing://"))

        def _open(self, path, mode="r", buffering=-1, **kwargs):
            return open(self._get_local_path(path), mode)

    PathManager.register_handler(Handler(), allow_override=True)
    with PathManager.open("testing://a.txt") as file:
        assert file.read() == "hello"
    assert PathManager.get_local_path("testing://a.txt") == str(tmp_path / "a.txt")
    assert PathManager.isfile(str(tmp_path / "a.txt"))
