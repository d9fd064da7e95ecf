"""Run every benchmark of ``tools/benchmarks`` and print one table: ``python tools/run_benchmarks.py``.

Each runs as its own process with ``--quick`` unless ``--full`` is given. All results together go to ``--json``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.command_line import run_command

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"
COLUMNS = ("name", "value", "unit", "reference", "ratio", "limit_fraction")


def main(argv: Sequence[str] | None = None, folder: Path = BENCHMARKS) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="benchmarks to run, e.g. text_encoder (default: all)")
    parser.add_argument("--full", action="store_true", help="full measurements instead of --quick")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="passed on (default: each benchmark's own choice)")
    parser.add_argument("--json", default="output/benchmarks.json", help="where the results go")
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
