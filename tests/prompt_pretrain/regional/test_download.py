import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from prompt_pretrain.errors import InputError
from prompt_pretrain.regional.download import RECORDS, choose_backend, download, read_records, summarize
from prompt_pretrain.regional.fetching import FetchLimits
from tests.prompt_pretrain.regional.web_server import picture, serve

LIMITS = FetchLimits(timeout=0.5, total_seconds=1.0, max_bytes=200_000, retries=0)


@pytest.fixture
def web():
    with serve() as web:
        yield web


def lists(folder: Path, **urls: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, of_class in urls.items():
        (folder / f"{name}.txt").write_text("".join(f"{url}\n" for url in of_class))
    return folder


def run(source, output, **options):
    return download(source, output, limits=LIMITS, backend="own", **options)


def test_lower_ranks_take_the_places_of_those_that_fail(web, tmp_path):
    urls = [web.url(path) for path in ("image/1", "page", "huge", "image/2", "hang", "image/3", "image/4", "image/5")]
    records = run(lists(tmp_path / "lists", dog=urls), tmp_path / "out", quota=3)["dog"]
    assert [(record.rank, record.status) for record in records] == [
        (0, "ok"),
        (1, "failed"),
        (2, "failed"),
        (3, "ok"),
        (4, "failed"),
        (5, "ok"),
    ]
    files = sorted(path.name for path in (tmp_path / "out" / "dog" / "00000").iterdir())
    assert files == ["000000000.jpg", "000000003.jpg", "000000005.jpg"]
    assert not web.asked["/image/4"]
    assert [record.reason for record in records if record.reason] == [
        "content type text/html, no image",
        "10,000,000,000 bytes, more than 200,000",
        "no answer within 0.5 s",
    ]
    counts = json.loads((tmp_path / "out" / "download.json").read_text())["counts"]
    assert counts["ok"] == 3 and counts == summarize({"dog": records})


def test_a_second_call_asks_only_for_what_is_missing(web, tmp_path):
    source = lists(tmp_path / "lists", dog=[web.url(path) for path in ("image/1", "busy", "image/2")])
    first = run(source, tmp_path / "out")
    assert run(source, tmp_path / "out") == first and web.asked["/image/1"] == web.asked["/busy"] == 1
    (tmp_path / "out" / "dog" / "00000" / "000000002.jpg").unlink()
    with open(tmp_path / "out" / "dog" / RECORDS, "a") as file:
        file.write('{"rank": 9, "url"')  # killed while writing
    assert run(source, tmp_path / "out") == first and web.asked["/image/2"] == 2
    run(source, tmp_path / "out", retry_failed=True)
    again = run(source, tmp_path / "out", retry_failed=True)["dog"]
    assert [record.status for record in again] == ["ok"] * 3 and web.asked["/image/1"] == 1
    assert read_records(tmp_path / "out" / "dog") == again


def test_other_lists_replace_what_is_there(web, tmp_path):
    source = lists(tmp_path / "lists", dog=[web.url("image/1"), web.url("image/2")])
    run(source, tmp_path / "out")
    lists(source, dog=[web.url("page"), web.url("image/1")])
    records = run(source, tmp_path / "out")["dog"]
    assert [record.status for record in records] == ["failed", "ok"]
    assert [path.name for path in (tmp_path / "out" / "dog" / "00000").iterdir()] == ["000000001.jpg"]


def test_equal_files_count_once_and_earlier_downloads_are_reused(web, tmp_path):
    urls = [web.url("image/1"), web.url("image/1?size=big"), web.url("image/2")]
    records = run(lists(tmp_path / "lists", dog=urls), tmp_path / "out", quota=2)["dog"]
    assert [record.reason for record in records] == ["", "the same file as an earlier one", ""]
    web.asked.clear()
    source = lists(tmp_path / "other", dog=urls[::-1])
    again = run(source, tmp_path / "next", quota=1, earlier=[tmp_path / "out"])["dog"]
    assert again[0].status == "ok" and again[0].sha256 == records[2].sha256 and not web.asked


def test_a_folder_as_the_web(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "1.jpg").write_bytes(picture(1))
    source = lists(tmp_path / "lists", dog=["1.jpg", "2.jpg"], cat=["../x.jpg"])
    found = run(source, tmp_path / "out", web_folder=tmp_path / "web")
    assert [record.status for record in found["dog"]] == ["ok", "failed"]
    assert found["cat"][0].reason == "outside the folder of images"


def test_img2dataset_where_it_is_installed(web, tmp_path, monkeypatch):
    asked = []

    def fake(**options):
        asked.append(options)
        folder = Path(options["output_folder"]) / "00000"
        folder.mkdir(parents=True)
        for rank, url in enumerate(Path(options["url_list"]).read_text().split()):
            told = {"url": url, "status": "success", "sha256": "abc"}
            if rank == 0:
                (folder / f"{rank:09d}.jpg").write_bytes(picture(1))
            elif rank == 1:
                (folder / f"{rank:09d}.jpg").write_bytes(b"cut short")
            else:
                told |= {"status": "failed_to_download", "error_message": "HTTP Error 404"}
            (folder / f"{rank:09d}.json").write_text(json.dumps(told))

    module = ModuleType("img2dataset")
    module.download = fake  # type: ignore[attr-defined]
    module.__spec__ = object()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "img2dataset", module)
    assert choose_backend("auto") == choose_backend("img2dataset") == "img2dataset"
    assert choose_backend("own") == choose_backend("auto", tmp_path) == "own"
    urls = [web.url(path) for path in ("huge", "image/1", "image/2", "endless", "image/3", "nothing", "page", "hang")]
    source = lists(tmp_path / "lists", dog=urls)
    records = download(source, tmp_path / "out", limits=LIMITS)["dog"]
    assert [record.status for record in records] == ["failed", "ok", *["failed"] * 6]
    # It knows no limit of bytes, so it must not see what is too large or does not say.
    assert Path(asked[0]["url_list"]).read_text().split() == [web.url(f"image/{number}") for number in (1, 2, 3)]
    assert records[0].reason == "10,000,000,000 bytes, more than 200,000"
    assert records[3].reason.startswith("the server does not say how many bytes it sends")
    assert "not an image" in records[2].reason and records[4].reason == "HTTP Error 404"
    assert [record.reason for record in records[5:]] == [
        "HTTP status 404",
        "content type text/html, no image",
        "no answer within 0.5 s",
    ]
    assert asked[0]["resize_mode"] == "keep_ratio" and asked[0]["timeout"] == 0.5
    assert download(source, tmp_path / "out", limits=LIMITS)["dog"] == records and len(asked) == 1
    assert Image.open(tmp_path / "out" / "dog" / "00000" / records[1].file).size == (40, 32)


def test_what_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="holds no lists of addresses"):
        run(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="unknown download backend 'wget'"):
        choose_backend("wget")
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="img2dataset is not installed"):
        choose_backend("img2dataset")
    assert choose_backend("auto") == "own"
