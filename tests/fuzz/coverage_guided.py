"""Coverage-guided fuzzing of the readers in ``readers.py``: atheris (libFuzzer for Python) keeps what reaches new code.

``pip install -c constraints.txt -e .[fuzz]`` (Python 3.11 or newer), then

    python -m tests.fuzz.coverage_guided --seconds 120 --output fuzz
    python -m tests.fuzz.coverage_guided --reader load_prompt.pth --reader "load_cfg" --seconds 600 --output fuzz

Each reader runs in a process of its own, starts from its valid file and ``--drawn`` files of the hypothesis pass, and
goes on with the corpus that an earlier run left in the output folder. What is found (errors that no reader may raise,
unclear messages, files slower than ``--slow`` seconds, writes elsewhere, crashes, hangs) lies under ``findings/``:
the file, and beside it what happened. Exit code 1 if there is any, of an earlier run too.
"""

import argparse
import contextlib
import faulthandler
import hashlib
import importlib.util
import io
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.readers import Reader

_REPOSITORY = Path(__file__).parents[2]
# Ours, and the parsers in Python that ours stand on. Nothing else: counters cost time, and torch has a million lines.
_INSTRUMENTED = (
    *("prompt_pretrain", "detection", "segmentation", "tools", "dataset_checks", "preparation", "centernet"),
    *(f"detectron2.{name}" for name in ("checkpoint", "config", "data", "evaluation", "label_maps")),
    *("mask_former", "fvcore.common", "torch._weights_only_unpickler", "torch.serialization", "safetensors"),
    *("yaml", "json", "zipfile", "tarfile", "csv", "ast", "numpy.lib", "PIL"),
)
_HANG_SECONDS = 60  # without a new execution; the sandbox itself stops Python code after half of that
_MEMORY = 8 << 30  # bytes of address space beyond what is in use: a blow-up ends in a MemoryError, not the machine
_MOST_FINDINGS = 20  # kinds for each reader


class Findings:
    """What went wrong with a reader, one file for each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: set[str] = set()

    def add(self, kind: str, what: str, data: bytes) -> None:
        """Keep ``data`` if nothing of this ``kind`` is kept, with the text ``what`` beside it."""
        name = re.sub(r"[^\w.-]+", "_", kind)[:80] + "-" + hashlib.sha1(kind.encode()).hexdigest()[:8]
        if name in self._seen or len(self._seen) >= _MOST_FINDINGS:
            return
        self._seen.add(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)
        (self.folder / f"{name}.txt").write_text(what, encoding="utf-8", errors="backslashreplace")


def kind_of(error: BaseException) -> str:
    """The same text for errors that come from the same place."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if str(_REPOSITORY) in frame.filename and "/tests/" not in frame.filename]
    last = (own or frames)[-1]
    return f"{type(error).__name__} {Path(last.filename).name} {last.name} {last.lineno}"


def problem_with(message: str | None, folder: Path) -> str | None:
    """Why ``message`` is no clear error for a file in ``folder``; None if it is, or if there is none."""
    if message is None:
        return None
    if str(folder) not in message:
        return "the message names no file"
    if len(message) >= 3000:
        return "the message is too long"
    return None


class Target:
    """Reads one file with one reader and keeps what goes wrong.

    Attributes:
        current: a file that always holds the bytes being read, for the one who finds this process dead.
    """

    def __init__(self, reader: "Reader", folder: Path, findings: Findings, slow: float) -> None:
        self.reader, self.folder, self.findings, self.slow = reader, folder, findings, slow
        self.current = folder / "current"

    def __call__(self, data: bytes) -> None:
        from tests.fuzz.sandbox import TooSlowError
        from tests.fuzz.test_fuzzed_files import read_in_watch

        self.current.write_bytes(data)
        started = time.process_time()
        try:
            message = read_in_watch(self.reader, data, self.folder / "x")
        except BaseException as error:  # also pytest's Failed, the sandbox's TooSlowError and SystemExit
            if isinstance(error, TooSlowError) and time.process_time() - started < self.slow:
                return  # the machine is busy, not the reader
            self.findings.add(kind_of(error), "".join(traceback.format_exception(error))[-20_000:], data)
            return
        seconds = time.process_time() - started
        if seconds > self.slow:
            self.findings.add("slow", f"{seconds:.1f} s of processor time", data)
        problem = problem_with(message, self.folder)
        if problem:
            text = re.sub(r"[0-9a-f]*\d[0-9a-f]*", "0", (message or "").replace(str(self.folder), ""))
            self.findings.add(f"{problem} {text[:40]}", f"{problem}: {message}", data)


def drawn_files(reader: "Reader", count: int) -> list[bytes]:
    """Damaged files as the hypothesis pass draws them."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from tests.fuzz.test_fuzzed_files import _STRATEGIES

    files: list[bytes] = []
    if count < 1:
        return files

    @seed(0)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=_STRATEGIES[reader.form](reader))
    def draw(data: bytes) -> None:
        files.append(data)

    draw()
    return files


def write_dictionary(reader: "Reader", path: Path) -> None:
    """Words of the valid file, which libFuzzer puts together in other ways."""
    words = set(re.findall(rb"[\w./-]{2,24}", reader.data()[:20_000]))
    words |= {b"null", b"true", b"NaN", b"1e999", b"-1", b"4294967296", b"!!python/", b"../"}
    lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in sorted(words))
    path.write_text("".join(f'"{line}"\n' for line in lines))


@contextlib.contextmanager
def instrumented(atheris: ModuleType) -> Iterator[None]:
    """Inside of it, modules of ``_INSTRUMENTED`` are imported with counters at their branches."""
    from atheris.import_hook import AtherisMetaPathFinder

    class Finder(AtherisMetaPathFinder):
        """Atheris' own chooses whole packages only."""

        def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
            wanted = any(fullname == name or fullname.startswith(f"{name}.") for name in _INSTRUMENTED)
            if not (wanted or fullname.startswith("prepare_")):
                return None
            with contextlib.redirect_stderr(io.StringIO()):  # it prints every name
                return super().find_spec(fullname, path, target)

    finder = Finder(set(), set(), True, True)
    for name in [name for name in sys.modules if name.split(".")[0] in ("json", "zipfile", "csv", "ast", "tarfile")]:
        del sys.modules[name]  # imported before anyone could count
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def fuzz(atheris: ModuleType, reader: "Reader", options: argparse.Namespace, work: Path, output: Path) -> None:
    """Fuzz ``reader``; does not come back, libFuzzer ends the process."""
    from tests.fuzz.structured import change_inside

    (work / "x").mkdir(parents=True, exist_ok=True)
    corpus, seeds = output / "corpus", work / "seeds"
    for folder in (corpus, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    valid = reader.data()
    for number, data in enumerate([valid, *drawn_files(reader, options.drawn)]):
        (seeds / f"{number:05d}").write_bytes(data)
    write_dictionary(reader, work / "words")

    def mutate(data: bytes, limit: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.6:
            changed = change_inside(data, reader.file, limit, atheris.Mutate, rng)
            if changed is not None and len(changed) <= limit:
                return changed
        return atheris.Mutate(data, limit)

    limit = max(4096, 3 * len(valid)) if len(valid) < 100_000 else len(valid) + 4096
    arguments = [str(output), f"-max_total_time={options.seconds}", f"-max_len={limit}", f"-dict={work / 'words'}"]
    arguments += [f"-handle_{fault}=0" for fault in ("segv", "bus", "abrt", "ill", "fpe")]  # faulthandler does that
    arguments += ["-timeout=0", "-rss_limit_mb=0", "-len_control=0", f"-artifact_prefix={work}/"]
    arguments += ["-print_final_stats=1", f"-seed={options.seed}", *(["-runs=0"] if options.seconds == 0 else [])]
    atheris.Setup(
        [*arguments, str(corpus), str(seeds)],
        Target(reader, work, Findings(output / "findings"), options.slow),
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def in_process(work: Path, log: Path, run: Callable[[], None]) -> str:
    """Run ``run`` in a forked process; how it ended: "" or what killed it, a hang included."""
    child = os.fork()
    if child == 0:
        try:
            with log.open("wb") as stream, open(os.devnull, "w") as nowhere:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
                faulthandler.enable(2)  # a crash leaves Python's stack in the log
                sys.stdout = sys.stderr = nowhere  # a reader's output, thousands of times
                logging.disable(logging.CRITICAL)
                _limit_memory()
                run()
        except BaseException:
            log.write_text(traceback.format_exc())
        os._exit(70)
    current, changed, before = work / "current", time.monotonic(), -1.0
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return "" if code == 0 else f"ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
        now = current.stat().st_mtime if current.exists() else -1.0
        if now != before:
            before, changed = now, time.monotonic()
        if time.monotonic() - changed > _HANG_SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"no progress in {_HANG_SECONDS} seconds"
        time.sleep(0.2)


def _limit_memory() -> None:
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def statistics(log: str) -> dict[str, int]:
    """Numbers of libFuzzer's log: edges and features of the seeds (``INITED``) and at the end, executions, corpus."""
    found = re.findall(r"#(\d+)\s+(\w+)\s+cov: (\d+) ft: (\d+)(?: corp: (\d+)/)?", log)
    first = next((row for row in found if row[1] == "INITED"), None) or ("0",) * 5
    last = found[-1] if found else first
    return {
        "executions": int(last[0]),
        "seed edges": int(first[2]),
        "edges": int(last[2]),
        "seed features": int(first[3]),
        "features": int(last[3]),
    }


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", help="name of a reader (repeatable); all of them without it")
    parser.add_argument("--seconds", type=int, default=120, help="for each reader; 0 only runs the seeds (default 120)")
    parser.add_argument("--drawn", type=int, default=300, help="files of the hypothesis pass to begin with")
    parser.add_argument("--slow", type=float, default=5.0, help="processor seconds that one file may take")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer")
    parser.add_argument("--output", type=Path, required=True, help="folder for corpora, logs and findings")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz the chosen readers in turn and print a table; 1 if something was found, 2 for a wrong call."""
    options = parse_args(argv)
    if importlib.util.find_spec("atheris") is None:
        print(
            "error: atheris is not installed; `pip install -c constraints.txt -e .[fuzz]` (CPython 3.11 or newer)",
            file=sys.stderr,
        )
        return 2
    import atheris

    # Where the commands of these folders find their own packages.
    sys.path[:0] = [str(_REPOSITORY / folder) for folder in ("datasets", "tools")]
    with instrumented(atheris):
        from tests.fuzz.readers import readers

        every = {reader.name: reader for reader in readers()}
        unknown = sorted(set(options.reader or ()) - set(every))
        if unknown:
            print(f"error: no reader {', '.join(unknown)}; there are: {', '.join(every)}", file=sys.stderr)
            return 2
        print(f"{'reader':36} {'runs':>8} {'runs/s':>7} {'edges':>13} {'features':>13} {'new files':>9}  findings")
        found = sum(_fuzz_one(atheris, every[name], options) for name in options.reader or every)
    return 1 if found else 0


def _read_valid(reader: "Reader", work: Path) -> None:
    """Import here what the reader imports when it is called, so that it counts in no limit."""
    from tests.fuzz.test_fuzzed_files import write_files

    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    write_files(reader, reader.data(), work / "x")
    reader.read(work / "x")


def _fuzz_one(atheris: ModuleType, reader: "Reader", options: argparse.Namespace) -> int:
    """Fuzz one reader in its own process, print its row, return the number of findings."""
    output = (options.output / re.sub(r"[^\w.]+", "_", reader.name)).resolve()
    output.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")
    work = Path(tempfile.mkdtemp(prefix="fuzz", dir=memory if memory.is_dir() else None))
    corpus = output / "corpus"
    before = sum(1 for _ in corpus.iterdir()) if corpus.is_dir() else 0
    started = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            _read_valid(reader, work)
        end = in_process(work, output / "log.txt", lambda: fuzz(atheris, reader, options, work, output))
        if end:
            kept = work / "current"
            log = (output / "log.txt").read_text(errors="replace")
            data = kept.read_bytes() if kept.exists() else b""
            Findings(output / "findings").add(end, f"{end}\n{log[-5000:]}", data)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seconds = time.monotonic() - started
    numbers = statistics((output / "log.txt").read_text(errors="replace"))
    new = sum(1 for _ in corpus.iterdir()) - before if corpus.is_dir() else 0
    findings = sorted(path.stem for path in (output / "findings").glob("*.txt"))
    edges = f"{numbers['seed edges']}>{numbers['edges']}"
    features = f"{numbers['seed features']}>{numbers['features']}"
    rate = numbers["executions"] / seconds
    row = f"{reader.name:36} {numbers['executions']:8} {rate:7.0f} {edges:>13} {features:>13} {new:9}  "
    print(row + (", ".join(findings) or "none"), flush=True)
    return len(findings)


if __name__ == "__main__":
    sys.exit(main())
