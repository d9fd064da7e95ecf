"""Files of graphs, and their comparison with the module they are made of."""

import importlib

import pytest
import torch
from torch import Tensor, nn

from prompt_pretrain.errors import InputError
from prompt_pretrain.model_export import (
    Exportable,
    difference,
    export_onnx,
    export_program,
    need_onnx,
    onnx_outputs,
    program_outputs,
    save_program,
)
from tests.export_packages import needs_onnx


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), x.sum(1) * y


class Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


class Gamma(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def part_of(module: nn.Module, **inputs: Tensor) -> Exportable:
    others = {name: torch.cat([each, each]) for name, each in inputs.items()}
    sizes = {name: {0: "rows"} for name in inputs}
    outputs = {f"out{i}": ("rows",) for i in range(len(inputs))}
    return Exportable("tower", module.eval(), inputs, sizes, outputs, (others,))


def test_a_program_gives_the_module_s_outputs_for_any_number_of_rows(tmp_path):
    part = part_of(Scale(), x=torch.rand(2, 3), y=torch.rand(2))
    save_program(export_program(part), tmp_path / "new" / "a.pt2")
    for inputs in (part.inputs, *part.others):
        assert difference(program_outputs(tmp_path / "new" / "a.pt2", inputs), part.run(inputs)) < 1e-6


@needs_onnx
def test_so_does_an_onnx_file(tmp_path):
    part = part_of(Scale(), x=torch.rand(2, 3), y=torch.rand(2))
    export_onnx(part, export_program(part), tmp_path / "a.onnx")
    for inputs in (part.inputs, *part.others):
        assert difference(onnx_outputs(tmp_path / "a.onnx", inputs), part.run(inputs)) < 1e-6
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]


@needs_onnx
def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    part = part_of(Gamma(), x=torch.rand(2, 3))
    with pytest.raises(InputError, match=r"the tower has no ONNX graph: ONNX has no operator for .*bessel_j0"):
        export_onnx(part, export_program(part), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_control_flow_that_depends_on_data_has_no_graph():
    with pytest.raises(InputError, match="torch.export cannot make a graph of the tower: "):
        export_program(part_of(Undecided(), x=torch.rand(2, 3)))


def test_a_missing_package_says_what_to_install(monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"ONNX needs the package onnx, .* pip install .*\[export\]', or give --form"):
        need_onnx()


def test_difference_is_relative_to_the_largest_value():
    one = torch.tensor([100.0, 1.0])
    assert difference([one + 0.5], [one]) == pytest.approx(0.005)
    assert difference([torch.tensor([2.5e-3])], [torch.tensor([2e-3])]) == pytest.approx(0.25)
    assert difference([torch.zeros(0)], [torch.zeros(0)]) == 0
    assert difference([one], [one[:1]]) == difference([one * float("nan")], [one]) == float("inf")
