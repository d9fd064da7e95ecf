"""Retrieved addresses to images: for each class the best ones that can be had, with a record of every attempt.

Layout, which is that of img2dataset: ``<output>/<folder>/00000/<rank>.jpg``, so that the order of names is the order of
similarity, and ``<output>/<folder>/records.jsonl``, one line per address: what became of it and why.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.classification.decoding import ImageError, open_image
from prompt_pretrain.errors import InputError
from prompt_pretrain.regional.fetching import FetchLimits, ImageFetchError, check_size, fetch_image
from prompt_pretrain.regional.image_files import save_jpeg

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "img2dataset", "own")
SHARD = "00000"
RECORDS = "records.jsonl"
_ADMITTED = "addresses.txt"  # what img2dataset is given
_RANK_DIGITS = 9


@dataclass(frozen=True)
class Record:
    """What became of one address.

    Attributes:
        rank: from 0, by similarity. status: ``ok`` or ``failed``. reason: why it failed, "" otherwise.
        file: name of the image. sha256: of the bytes that came.
    """

    rank: int
    url: str
    status: str
    reason: str = ""
    file: str = ""
    sha256: str = ""


def download(
    lists: str | os.PathLike,
    output: str | os.PathLike,
    *,
    quota: int = 0,
    limits: FetchLimits | None = None,
    web_folder: str | os.PathLike | None = None,
    backend: str = "auto",
    workers: int = 16,
    retry_failed: bool = False,
    earlier: Sequence[str | os.PathLike] = (),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[Record]]:
    """Download the images of every ``<folder>.txt`` in ``lists``.

    Addresses with a record are not asked again, so an interrupted call is taken up.

    Args:
        quota: images wanted of each class; lower ranks take the places of those that fail. 0 tries all addresses.
        web_folder: addresses are paths below this folder instead of the web.
        backend: ``img2dataset``; ``own``, the downloader of this module; ``auto``: the first where it is installed.
            img2dataset tries all addresses. It knows no limit of bytes, so each address is asked before how many it
            would send; those that send too many, or do not say, are left out.
        workers: downloads at a time.
        retry_failed: ask again where an earlier call failed.
        earlier: outputs of other downloads; an image that one of them has of the same class and address is copied.
        progress: called with the classes done and their number.
    Returns:
        Folder -> records in the order of their ranks.
    Raises:
        InputError: no lists, an unknown backend, or img2dataset is asked for and not installed.
    """
    limits = limits or FetchLimits()
    source, output = Path(lists), Path(output)
    files = sorted(source.glob("*.txt"))
    if not files:
        raise InputError(f"{source} holds no lists of addresses (*.txt); make them with: regional_prompt retrieve")
    backend = choose_backend(backend, web_folder)
    found = {}
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for done, file in enumerate(files, start=1):
            target = output / file.stem
            urls = list(dict.fromkeys(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines()))))
            known = {record.url: record for record in read_records(target) if record.status == "ok" or not retry_failed}
            if backend == "img2dataset":
                records = _with_img2dataset(target, urls, known, limits, workers, pool)
            else:
                folder = None if web_folder is None else Path(web_folder)
                had = _images_by_url([Path(place) / file.stem for place in earlier])
                job = _Job(target, limits, folder, had)
                records = _fill_quota(job, urls, known, quota or len(urls), pool)
            found[file.stem] = records
            if progress is not None:
                progress(done, len(files))
    write_json(output / "download.json", {"limits": asdict(limits), "quota": quota, "counts": summarize(found)})
    return found


def choose_backend(backend: str, web_folder: str | os.PathLike | None = None) -> str:
    """``img2dataset`` or ``own``.

    Raises:
        InputError: an unknown name, or img2dataset is asked for and not installed.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown download backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    if web_folder is not None:
        return "own"
    installed = importlib.util.find_spec("img2dataset") is not None
    if backend == "img2dataset" and not installed:
        raise InputError("img2dataset is not installed; pip install img2dataset, or give --backend own")
    return "img2dataset" if installed and backend != "own" else "own"


def read_records(folder: str | os.PathLike) -> list[Record]:
    """Records of one class by rank, the last one of each address; a line that a kill cut short is left out."""
    found: dict[str, Record] = {}
    with suppress(FileNotFoundError), open(Path(folder) / RECORDS, encoding="utf-8") as file:
        for line in file:
            with suppress(ValueError, TypeError):
                record = Record(**json.loads(line))
                found[record.url] = record
    return sorted(found.values(), key=lambda record: record.rank)


def summarize(records: Mapping[str, Sequence[Record]]) -> dict[str, int]:
    """Numbers of images and of each reason of failure; numbers within reasons are left out of them."""
    counts: Counter[str] = Counter()
    for of_class in records.values():
        for record in of_class:
            counts["ok" if record.status == "ok" else f"failed: {record.reason}"] += 1
    return dict(counts.most_common())


@dataclass(frozen=True)
class _Job:
    """Where the images of one class go, and where they may come from."""

    target: Path
    limits: FetchLimits
    web_folder: Path | None
    had: Mapping[str, tuple[Path, str]]  # address -> image of an earlier download, hash of what came


def _images_by_url(folders: Sequence[Path]) -> dict[str, tuple[Path, str]]:
    return {
        record.url: (folder / SHARD / record.file, record.sha256)
        for folder in folders
        for record in read_records(folder)
        if record.status == "ok"
    }


def _fill_quota(
    job: _Job, urls: Sequence[str], known: Mapping[str, Record], quota: int, pool: ThreadPoolExecutor
) -> list[Record]:
    """Go down the list until ``quota`` images are there: what came does not depend on which answer is fastest."""
    target = job.target
    (target / SHARD).mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    seen: set[str] = set()
    good = 0
    position = 0
    with open(target / RECORDS, "a", encoding="utf-8") as file:
        file.write("\n" if _torn(target / RECORDS) else "")
        while good < quota and position < len(urls):
            part = range(position, min(position + quota - good, len(urls)))
            position = part.stop
            missing = [rank for rank in part if not _usable(known.get(urls[rank]), target, rank)]
            tasks = ((job, rank, urls[rank]) for rank in missing)
            made = dict(zip(missing, pool.map(_fetch, tasks), strict=True))
            for rank in part:
                record = made.get(rank) or known[urls[rank]]
                if record.status == "ok" and record.sha256 in seen:
                    (target / SHARD / record.file).unlink(missing_ok=True)
                    record = Record(rank, record.url, "failed", "the same file as an earlier one")
                if rank in made or record != known.get(record.url):
                    file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
                if record.status == "ok":
                    seen.add(record.sha256)
                    good += 1
                records.append(record)
            file.flush()
    return records


def _usable(record: Record | None, target: Path, rank: int) -> bool:
    """Whether a record can stand for this rank: lists change between rounds, and files get lost."""
    if record is None or record.rank != rank:
        return False
    return record.status != "ok" or (target / SHARD / record.file).is_file()


def _fetch(task: tuple[_Job, int, str]) -> Record:
    job, rank, url = task
    name = f"{rank:0{_RANK_DIGITS}d}.jpg"
    path = job.target / SHARD / name
    source, digest = job.had.get(url, (None, ""))
    if source is not None and source.is_file():
        shutil.copyfile(source, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        return Record(rank, url, "ok", "", name, digest)
    try:
        image, data = fetch_image(url, job.limits, job.web_folder)
    except ImageFetchError as error:
        path.unlink(missing_ok=True)  # of another list
        return Record(rank, url, "failed", str(error))
    save_jpeg(image, path)
    return Record(rank, url, "ok", "", name, hashlib.sha256(data).hexdigest())


def _torn(path: Path) -> bool:
    data = path.read_bytes()
    return bool(data) and not data.endswith(b"\n")


def _with_img2dataset(
    target: Path,
    urls: Sequence[str],
    known: Mapping[str, Record],
    limits: FetchLimits,
    workers: int,
    pool: ThreadPoolExecutor,
) -> list[Record]:
    """Let img2dataset download what is not too large, then check what it wrote as :func:`fetch_image` would."""
    if all(url in known for url in urls):
        return [known[url] for url in urls]
    target.mkdir(parents=True, exist_ok=True)
    refusals = dict(zip(urls, pool.map(partial(_refusal, limits=limits), urls), strict=True))
    admitted = [url for url in urls if not refusals[url]]
    if admitted:
        (target / _ADMITTED).write_text("".join(f"{url}\n" for url in admitted), encoding="utf-8")
        _run_img2dataset(target, len(admitted), limits, workers)
    records = _records_of_img2dataset(target, urls, refusals)
    with open(target / RECORDS, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    return records


def _refusal(url: str, limits: FetchLimits) -> str:
    """Why img2dataset must not be given an address; "" if it may."""
    try:
        check_size(url, limits)
    except ImageFetchError as error:
        return str(error)
    return ""


def _run_img2dataset(target: Path, count: int, limits: FetchLimits, workers: int) -> None:
    from img2dataset import download as run

    run(
        url_list=str(target / _ADMITTED),
        input_format="txt",
        output_folder=str(target),
        output_format="files",
        image_size=limits.max_side or 1024,
        resize_mode="keep_ratio" if limits.max_side else "no",
        resize_only_if_bigger=True,
        encode_quality=95,
        processes_count=1,
        thread_count=workers,
        timeout=limits.timeout,
        retries=limits.retries,
        min_image_size=limits.min_side,
        number_sample_per_shard=count,
        compute_hash="sha256",
        incremental_mode="incremental",
    )


def _records_of_img2dataset(target: Path, urls: Sequence[str], refusals: Mapping[str, str]) -> list[Record]:
    told: dict[str, Any] = {}
    for path in sorted((target / SHARD).glob("*.json")):
        with suppress(ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            told[content["url"]] = (path, content)
    records = []
    for rank, url in enumerate(urls):
        path, content = told.get(url, (None, {}))
        image = path.with_suffix(".jpg") if path is not None else None
        if image is None or not image.is_file():
            reason = refusals[url] or str(content.get("error_message") or "img2dataset gave no image")
            records.append(Record(rank, url, "failed", reason))
            continue
        try:
            open_image(str(image))
        except ImageError as error:
            records.append(Record(rank, url, "failed", error.reason))
            continue
        records.append(Record(rank, url, "ok", "", image.name, str(content.get("sha256") or "")))
    return records
