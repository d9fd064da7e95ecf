"""What every benchmark shares: arguments, result records, the best of several timings."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from prompt_pretrain.atomic_files import write_json


@dataclass(frozen=True)
class Record:
    """One measured number.

    Attributes:
        reference: the same quantity on the reference path, measured in the same run.
        ratio: how many times better ``value`` is than ``reference`` (above 1 is better).
        limit_fraction: share of the arithmetic or bandwidth limit that was reached, in [0, 1].
    """

    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    limit_fraction: float | None = None


def parse_arguments(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """The options of DESIGN's benchmark contract: ``--quick``, ``--json FILE``, ``--device``."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less than a minute on two cores")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available")
    return options


def report(records: list[Record], path: str | None) -> None:
    """Print the records, one a line, and write them as JSON where ``path`` is given."""
    for record in records:
        line = f"{record.name:<48} {record.value:>11.4g} {record.unit:<12}"
        if record.reference is not None:
            line += f" reference {record.reference:.4g}"
        if record.ratio is not None:
            line += f"  ratio {record.ratio:.3g}"
        if record.limit_fraction is not None:
            line += f"  {record.limit_fraction:.0%} of the limit"
        print(line, flush=True)
    if path:
        write_json(path, [asdict(record) for record in records])


def best_seconds(run: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Shortest of ``repeats`` timings of ``run`` after one that is not counted."""
    return min([timed(run, device) for _ in range(repeats + 1)][1:])


def fastest(
    runs: Sequence[Callable[[], object]], seconds: float, device: str = "cpu", *, at_least: int = 3
) -> list[float]:
    """Shortest time of each run, in seconds, of the rounds that fit into ``seconds``, ``at_least`` so many.

    They take turns, so that all meet the same load of the machine.
    """
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while len(times[0]) < at_least or time.perf_counter() < end:
        for run, own in zip(runs, times, strict=True):
            own.append(timed(run, device))
    return [min(own) for own in times]


def timed(run: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of one run, what it started on the device included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
