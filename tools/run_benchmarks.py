"""Run every benchmark of ``tools/benchmarks`` and print one table: ``python tools/run_benchmarks.py``.

Each runs as its own process with ``--quick`` unless ``--full`` is given. All results together go to ``--json``.
``--record`` keeps them with the name of the device in ``docs/benchmarks`` and renders all records there, of this and of
other machines, into ``docs/PERFORMANCE.md``.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.report import Commands, Report, Table
from prompt_pretrain.shapeworld_results import write_section

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"
RECORDS = ROOT / "docs" / "benchmarks"
MARKERS = ("<!-- recorded benchmarks: begin -->", "<!-- recorded benchmarks: end -->")
COLUMNS = ("name", "value", "unit", "reference", "ratio", "limit_fraction")


def main(argv: Sequence[str] | None = None, folder: Path = BENCHMARKS) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="benchmarks to run, e.g. text_encoder (default: all)")
    parser.add_argument("--full", action="store_true", help="full measurements instead of --quick")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="passed on (default: each benchmark's own choice)")
    parser.add_argument("--json", default="output/benchmarks.json", help="where the results go")
    parser.add_argument("--record", action="store_true", help="keep the results and write them into the document")
    parser.add_argument(
        "--records", default=str(ROOT / "docs" / "benchmarks"), metavar="DIR", help="where they are kept"
    )
    parser.add_argument("--document", default=str(ROOT / "docs" / "PERFORMANCE.md"), metavar="MD")
    options = parser.parse_args(argv)

    scripts = {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}
    unknown = [name for name in options.names if name not in scripts]
    if unknown:
        parser.error(f"no benchmark {unknown[0]}; there are: {', '.join(scripts)}")
    arguments = ([] if options.full else ["--quick"]) + (["--device", options.device] if options.device else [])
    results: list[dict[str, Any]] = []
    failed = []
    for name in options.names or scripts:
        print(f"== {name}", flush=True)
        found = run_benchmark(scripts[name], arguments)
        if found is None:
            failed.append(name)
        else:
            results += found
    write_json(options.json, results)
    print(format_table(results))
    print(f"written to {options.json}")
    if options.record:
        keep_record(Path(options.records), results, device_name(options.device), full=options.full)
        write_section(options.document, render_records(Path(options.records)), MARKERS)
        print(f"recorded in {options.records}, written to {options.document}")
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_benchmark(script: Path, arguments: Sequence[str]) -> list[dict[str, Any]] | None:
    """The results of one benchmark; None if it failed or left no readable results."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        command = [sys.executable, str(script), *arguments, "--json", str(file)]
        if subprocess.run(command).returncode != 0:
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def device_name(device: str | None) -> str:
    """What was measured: the GPU, or the CPU's model and cores."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else model
    return f"{model}, {os.cpu_count()} cores"


def keep_record(folder: Path, results: Sequence[dict[str, Any]], device: str, *, full: bool) -> None:
    """Write the results of a device; those of benchmarks that did not run this time stay."""
    path = folder / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}{'-full' if full else ''}.json"
    ran = {result["name"].partition("/")[0] for result in results}
    kept = [each for each in _read_record(path)["results"] if each["name"].partition("/")[0] not in ran]
    merged = sorted([*kept, *results], key=lambda each: each["name"])
    write_json(path, {"device": device, "command": f"make bench{' ARGS=--full' if full else ''}", "results": merged})


def render_records(folder: Path) -> str:
    """All records as Markdown, one table per device."""
    report = Report("Recorded benchmarks")
    for path in sorted(folder.glob("*.json")):
        record = _read_record(path)
        rows = [[_cell(result.get(column)) for column in COLUMNS] for result in record["results"]]
        report.section(record["device"])
        report.add(Commands([record["command"]]), Table(COLUMNS, rows, text_columns=(2,)))
    return report.markdown()


def _read_record(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"results": []}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert {"device", "command", "results"} <= record.keys()
    except (ValueError, AttributeError, AssertionError) as error:
        raise InputError(f"{path} is no record of benchmarks; remove it or restore it") from error
    return record


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """Results as aligned columns; unknown fields are shown as ``-``."""
    rows = [COLUMNS] + [tuple(_cell(result.get(column)) for column in COLUMNS) for result in results]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(run_command(main))
