"""Models as files for other runtimes: torch.export (.pt2) and ONNX, each checked against the model it was made of."""

import importlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.errors import InputError

__all__ = ["FORMATS", "Exportable", "difference", "export_onnx", "export_program", "need_onnx", "onnx_outputs"]
__all__ += ["program_outputs", "save_program"]

FORMATS = {"torch": ".pt2", "onnx": ".onnx"}
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")  # of the extra `export`
_LARGEST = 2**31 - 1  # bytes, of a protobuf message
_LEAST_SCALE = 1e-6  # outputs that are smaller all over are compared absolutely


@dataclass(frozen=True)
class Exportable:
    """A module with what its user must know.

    Attributes:
        name: ``classifier``, ``image-tower``, …
        module: takes tensors only, gives a tensor or a tuple of them; in evaluation mode.
        inputs: examples by argument name, in the order of ``forward``.
        sizes: per input the axes of any size, and what they count: ``{"class_embeddings": {0: "classes"}}``.
        outputs: their shapes by name, in the order that the module gives them; a text is an axis of any size.
        others: further inputs, of other sizes where those vary, that the files are checked with.
        facts: whatever else a user must know, for the description beside the files.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    sizes: Mapping[str, Mapping[int, str]]
    outputs: Mapping[str, tuple[int | str, ...]]
    others: Sequence[Mapping[str, Tensor]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The module's own outputs."""
        found = self.module(**inputs)
        return found if isinstance(found, tuple) else (found,)

    def describe(self) -> dict[str, Any]:
        """Names, types and shapes of inputs and outputs; a text in a shape is an axis of any size."""
        inputs = [
            {
                "name": name,
                "type": str(each.dtype).removeprefix("torch."),
                "shape": [self.sizes.get(name, {}).get(axis, size) for axis, size in enumerate(each.shape)],
            }
            for name, each in self.inputs.items()
        ]
        outputs = [{"name": name, "shape": list(shape)} for name, shape in self.outputs.items()]
        return {"part": self.name, "inputs": inputs, "outputs": outputs} | dict(self.facts)


def export_program(part: Exportable) -> torch.export.ExportedProgram:
    """The module as a graph of torch operators.

    Raises:
        InputError: an operation that has no graph.
    """
    axes = {name: torch.export.Dim(name, min=1) for axes in part.sizes.values() for name in axes.values()}
    shapes = {
        name: {axis: axes[size] for axis, size in part.sizes.get(name, {}).items()} or None for name in part.inputs
    }
    with torch.no_grad(), _plain_attention(), _quiet():
        try:
            return torch.export.export(part.module, (), dict(part.inputs), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch.export raises many kinds, from deep inside
            raise InputError(f"torch.export cannot make a graph of the {part.name}: {_first_line(error)}") from error


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a ``.pt2`` file, whole or not at all."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with atomic_writer(path) as file:
        file.write(buffer.getbuffer())


def need_onnx() -> None:
    """
    Raises:
        InputError: a package of the extra is missing.
    """
    for package in _PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"ONNX needs the package {package}, which is not installed ({_first_line(error)}); "
                "pip install -c constraints.txt -e '.[export]', or give --formats torch"
            ) from error


def export_onnx(part: Exportable, program: torch.export.ExportedProgram, path: Path) -> None:
    """Write an ``.onnx`` file, whole or not at all.

    Raises:
        InputError: an operator that ONNX lacks, more weights than one file may hold, a missing package.
    """
    need_onnx()
    with _quiet():
        try:
            found = torch.onnx.export(
                program,
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                dynamo=True,
                verbose=False,
                optimize=True,
            )
        except Exception as error:
            unknown = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(error))
            reason = f"ONNX has no operator for {unknown[1]}" if unknown else _first_line(error)
            raise InputError(f"the {part.name} has no ONNX graph: {reason}; give --formats torch") from error
    assert found is not None
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if size > _LARGEST:
        raise InputError(
            f"the {part.name} has {size / 2**30:.1f} GiB of weights, more than the 2 GiB of an ONNX file; "
            "give --formats torch"
        )
    with atomic_writer(path) as file:
        file.write(found.model_proto.SerializeToString())


def program_outputs(path: str | os.PathLike, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """What the graph in a ``.pt2`` file computes."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found = torch.export.load(os.fspath(path)).module()(**inputs)
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def onnx_outputs(path: str | os.PathLike, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """What onnxruntime computes on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    known = {each.name for each in session.get_inputs()}  # one that changes no output is left out
    found = session.run(None, {name: each.numpy() for name, each in inputs.items() if name in known})
    return tuple(torch.from_numpy(np.asarray(each)) for each in found)


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest absolute difference of the outputs, relative to each one's largest value.

    Infinite for other shapes and for NaN in one of them.
    """
    largest = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if other.numel():
            one, other = one.detach().double(), other.detach().double()
            worst = float((one - other).abs().max() / other.abs().max().clamp(min=_LEAST_SCALE))
            largest = max(largest, worst if worst == worst else float("inf"))
    return largest


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without the fused layers of evaluation mode, which have no graph."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _quiet() -> Iterator[None]:
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
