import time

import pytest

from prompt_pretrain.errors import InputError
from prompt_pretrain.regional.fetching import FetchLimits, ImageFetchError, fetch_image
from tests.prompt_pretrain.regional.web_server import picture, serve

LIMITS = FetchLimits(timeout=0.5, total_seconds=1.0, max_bytes=200_000, max_side=100, retries=0, retry_wait=0.01)


@pytest.fixture(scope="module")
def web():
    with serve() as web:
        yield web


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("page", "content type text/html, no image"),
        ("disguised", r"not an image\)? ?.*looks like a web page"),
        ("cut", "damaged or not an image"),
        ("huge", "10,000,000,000 bytes, more than 200,000"),
        ("endless", "more than 200,000 bytes"),
        ("hang", "no answer within 0.5 s"),
        ("drip", "not finished after 1 s"),
        ("slowhead", "not finished after 1 s|HTTP"),
        ("broken", "broken off after 100 of 5,000 bytes"),
        ("nothing", "HTTP status 404"),
        ("busy", "HTTP status 503"),
        ("small", "8 x 8 pixels, smaller than 16"),
        ("outside", "redirection to url 'file:///etc/passwd'|HTTP status 302|unknown url type"),
        ("loop", "HTTP status 302|infinite loop"),
    ],
)
def test_a_server_that_disappoints_is_told_in_time(web, path, reason):
    began = time.monotonic()
    with pytest.raises(ImageFetchError, match=reason):
        fetch_image(web.url(path), LIMITS)
    assert time.monotonic() - began < 5


def test_images_come_whole_and_not_larger_than_asked_for(web):
    image, data = fetch_image(web.url("image/1"), LIMITS)
    assert image.size == (40, 32) and data == picture(1)
    assert fetch_image(web.url("moved"), LIMITS)[1] == picture(4)
    assert fetch_image(web.url("wide"), LIMITS)[0].size == (100, 20)  # the ratio is kept
    assert fetch_image(web.url("image/1?a b=ü"), LIMITS)[1] == data


def test_what_may_pass_is_tried_again(web):
    patient = FetchLimits(timeout=0.5, retries=3, retry_wait=0.01)
    web.asked.clear()
    assert fetch_image(web.url("busy"), patient)[1] == picture(3)
    with pytest.raises(ImageFetchError, match="404"):
        fetch_image(web.url("nothing"), patient)
    assert (web.asked["/busy"], web.asked["/nothing"]) == (3, 1)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y.jpg", "x.jpg", "http://"])
def test_other_addresses_are_not_followed(url):
    with pytest.raises(ImageFetchError, match="no http or https address"):
        fetch_image(url, LIMITS)


def test_nobody_answers():
    with pytest.raises(ImageFetchError, match="refused"):
        fetch_image("http://127.0.0.1:9/x.jpg", LIMITS)


def test_a_folder_as_the_web(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a b.jpg").write_bytes(picture(1))
    (tmp_path / "secret.jpg").write_bytes(picture(2))
    (tmp_path / "web" / "large.jpg").write_bytes(b"x" * 300_000)
    assert fetch_image("a b.jpg", LIMITS, tmp_path / "web")[1] == picture(1)
    for name, reason in (
        ("../secret.jpg", "outside the folder"),
        (str(tmp_path / "secret.jpg"), "outside the folder"),
        ("none.jpg", "No such file"),
        ("large.jpg", "300,000 bytes, more than"),
    ):
        with pytest.raises(ImageFetchError, match=reason):
            fetch_image(name, LIMITS, tmp_path / "web")


def test_limits_must_be_positive():
    with pytest.raises(InputError, match="timeout of downloads is 0"):
        FetchLimits(timeout=0)
    with pytest.raises(InputError, match="retries of downloads is -1"):
        FetchLimits(retries=-1)
