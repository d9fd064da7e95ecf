"""Files made to do harm: code in pickles and configs, archives that lead elsewhere, small files that unfold."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import third_party
from prompt_pretrain.annotation_fields import find_wrong_row, is_outline, rle_problem
from prompt_pretrain.array_files import read_npy
from prompt_pretrain.classification import tar_archives
from prompt_pretrain.classification.decoding import ImageError, open_image
from prompt_pretrain.classification.tar_archives import open_index, read_member
from prompt_pretrain.clip_files import parse_config
from prompt_pretrain.errors import InputError
from prompt_pretrain.safe_pickle import read_torch_archive
from tests.fuzz.readers import Reader, image_bytes, reader_named, readers, tar_bytes, torch_bytes
from tests.fuzz.sandbox import watched
from tests.fuzz.test_fuzzed_files import _surroundings, read_in_watch  # noqa: F401  (a fixture)

_PICKLED = [
    reader
    for reader in readers()
    if reader.file.endswith((".pth", ".pkl", ".pth.tar-5", ".npy", ".npz")) and reader.form == "bytes"
]
hacked: list[str] = []


def note(text: str) -> None:
    """What a payload calls: a name of this module, which no list of forbidden names holds."""
    hacked.append(text)


class _Payload:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def _payloads(folder: Path) -> dict[str, bytes]:
    """Files that call something when they are unpickled, in every container that a reader may meet."""
    target = str(folder / "hacked")
    objects = {
        "system": _Payload(os.system, f"touch {target}"),
        "open": _Payload(open, target, "w"),
        "own": _Payload(note, "called"),
        "eval": _Payload(eval, "hacked.append(1)"),
    }
    files = {}
    for name, payload in objects.items():
        content = {"model": {"weight": payload}, "state_dict": {"ctx": payload}, "iteration": 1}
        files[f"{name} zip"] = torch_bytes(content)
        files[f"{name} legacy"] = torch_bytes(content, zipped=False)
        files[f"{name} pickle"] = pickle.dumps(content, protocol=2)
        array = np.empty(1, dtype=object)
        array[0] = payload
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        files[f"{name} npy"] = buffer.getvalue()
    return files


@pytest.mark.parametrize("reader", _PICKLED, ids=str)
def test_code_in_weights_is_never_run(reader: Reader, tmp_path: Path):
    for name, data in _payloads(tmp_path).items():
        hacked.clear()
        read_in_watch(reader, data, tmp_path / "x")
        assert not hacked, name
        assert not (tmp_path / "hacked").exists(), name


@pytest.mark.parametrize("loader", ["load_cfg", "detection.load_config", "segmentation.load_config"])
@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch hacked']",
        '!!python/object/apply:eval [\'__import__("os").system("touch hacked")\']',
        "!!python/object/apply:eval ['[().__class__.__base__.__subclasses__() for i in range(1)]']",
        "!!python/object/new:tests.fuzz.test_hostile_files.note ['x']",
        "!!python/name:os.system",
        "!!python/module:antigravity",
    ],
)
def test_tags_in_configs_run_nothing(loader: str, value: str, tmp_path: Path):
    reader = reader_named(loader)
    hacked.clear()
    message = read_in_watch(reader, f"OPTIM:\n  LR: {value}\nSOLVER:\n  BASE_LR: {value}\n".encode(), tmp_path / "x")
    assert message is not None and "a.yaml" in message
    assert not hacked


_NAMED_TWICE = {
    "lists": lambda n: f"&a{n} [*a{n - 1}, *a{n - 1}]",
    "tuples": lambda n: f"&a{n} !!python/tuple [*a{n - 1}, *a{n - 1}]",
    "keys": lambda n: f"&a{n} {{? !!python/tuple [*a{n - 1}, *a{n - 1}] : 1}}",
    "maps": lambda n: f"&a{n} {{a: *a{n - 1}, b: *a{n - 1}}}",
    "merges": lambda n: f"&a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}",
}


@pytest.mark.parametrize("how", _NAMED_TWICE)
@pytest.mark.parametrize("reader", [reader for reader in readers() if reader.form == "yaml"], ids=str)
def test_anchors_in_configs_do_not_unfold(reader: Reader, how: str, tmp_path: Path):
    lines = ["x0: &a0 {a: x}", *(f"x{n}: {_NAMED_TWICE[how](n)}" for n in range(1, 40)), "SOLVER: *a39", "OPTIM: *a39"]
    message = read_in_watch(reader, "\n".join(lines).encode(), tmp_path / "x")
    assert message is not None and "a.yaml" in message and len(message) < 600


@pytest.mark.parametrize("loader", ["load_cfg", "detection.load_config", "segmentation.load_config"])
def test_the_base_of_a_config_is_a_file(loader: str, tmp_path: Path):
    reader = reader_named(loader)
    message = read_in_watch(reader, b"_BASE_: /dev/zero", tmp_path / "x")
    assert message is not None and "a.yaml: _BASE_ names /dev/zero, which is no file" in message


def test_members_of_archives_stay_in_the_output_folder(tmp_path: Path):
    names = ["../../escaped.JPEG", "/tmp/escaped_f8.JPEG", "a/../../escaped.JPEG", "..", "good.JPEG", "sub/good2.JPEG"]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
        for kind, name in (
            (tarfile.SYMTYPE, "link.JPEG"),
            (tarfile.LNKTYPE, "hard.JPEG"),
            (tarfile.CHRTYPE, "dev.JPEG"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "n1.tar"
    path.write_bytes(archive.getvalue())
    assert [bytes(name) for name in open_index(str(path)).names] == [b"good.JPEG", b"sub/good2.JPEG"]
    from prepare_imagenet_lvis import unpack

    with watched(tmp_path):
        unpack(path, tmp_path / "out" / "images")
    assert sorted(file.name for file in tmp_path.rglob("*.JPEG")) == ["good.JPEG", "good2.JPEG"]
    assert not Path("/tmp/escaped_f8.JPEG").exists()


@pytest.mark.parametrize("size", [-(1 << 40), 1 << 70])
@pytest.mark.parametrize("name", ["find_images", "tar images", "unpack"])
def test_sizes_in_archives_that_no_file_can_have(name: str, size: int, tmp_path: Path):
    reader = reader_named(name)
    data = bytearray(tar_bytes({"n1_1.JPEG": b"abc"}))
    data[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    data[148:156] = b"%06o\0 " % (256 + sum(data[:148]) + sum(data[156:512]))
    message = read_in_watch(reader, bytes(data), tmp_path / "x")
    assert message is not None and "n1.tar" in message


@pytest.mark.parametrize("digits", [25, 5000])
def test_sizes_of_any_length_in_long_headers(digits: int, tmp_path: Path):
    reader = reader_named("tar images")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("n1_1.JPEG")
        info.pax_headers = {"size": "9" * digits}
        archive.addfile(info)
    assert "n1.tar is damaged at byte" in (read_in_watch(reader, stream.getvalue(), tmp_path / "x") or "")


def test_names_that_no_file_can_have_are_left_out(tmp_path: Path):
    from prepare_imagenet_lvis import unpack

    members = {f"{'n' * 300}.JPEG": b"abc", f"{'x' * 120}a.b.JPEG": b"abc", "good.JPEG": b"abc"}
    data = tar_bytes(members, tarfile.PAX_FORMAT).replace(b"xa.b.JPEG", b"xa\0b.JPEG")
    (tmp_path / "n1.tar").write_bytes(data)
    counts = unpack(tmp_path / "n1.tar", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.JPEG"]
    assert counts == {"written": 1, "unreadable": 1}


def test_a_link_planted_in_the_output_folder_is_replaced_not_followed(tmp_path: Path):
    """An archive is unpacked where someone else could write: the file that a link points to stays as it is."""
    from prepare_imagenet_lvis import unpack

    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.JPEG").symlink_to(tmp_path / "victim")
    (tmp_path / "n1.tar").write_bytes(tar_bytes({"b.JPEG": b"abc"}))
    unpack(tmp_path / "n1.tar", tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "mine"


def test_packed_members_unfold_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tar_archives, "MAX_MEMBER_BYTES", 1 << 20)
    bomb = gzip.compress(bytes((1 << 20) + 1))
    (tmp_path / "n1.tar").write_bytes(tar_bytes({"a.JPEG": bomb}))
    with watched(tmp_path), pytest.raises(OSError, match="unpacks to more than"):
        read_member(f"{tmp_path / 'n1.tar'}::a.JPEG")


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    row = zlib.compress(bytes(1001))  # the rest is promised only
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["open_image.png", "open_inputs.png", "read_image.png", "label map.training.png.L"])
@pytest.mark.parametrize("size", [(60_000, 60_000), (1 << 30, 4), (4, 1 << 30)])
def test_images_that_promise_too_many_pixels_are_refused_before_they_are_decoded(name, size, tmp_path: Path):
    reader = reader_named(name)
    data = _png(*size)
    if name == "open_inputs.png":  # gives the error in place of the image
        path = tmp_path / "a.png"
        path.write_bytes(data)
        with watched(tmp_path), pytest.raises(ImageError):
            open_image(str(path))
        return
    assert read_in_watch(reader, data, tmp_path / "x") is not None


def test_a_long_text_chunk_of_a_png_is_refused(tmp_path: Path):
    text = zlib.compress(bytes(1 << 27), 9)
    data = image_bytes("PNG")
    chunk = b"zTXt" + b"k\0\0" + text
    data = data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    (tmp_path / "a.png").write_bytes(data)
    with watched(tmp_path), pytest.raises(ImageError):
        open_image(str(tmp_path / "a.png"))


def test_an_array_that_promises_more_than_its_file_holds_costs_no_memory(tmp_path: Path):
    path = tmp_path / "a.npy"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    header += b" " * (117 - len(header)) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    with watched(tmp_path), pytest.raises(InputError, match="a.npy is no readable .npy array"):
        read_npy(path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="a.npy is no readable .npy array"):
        read_npy(path)


def test_entries_of_an_archive_that_share_their_bytes_are_refused(tmp_path: Path):
    """One megabyte on disk, a thousand in memory: every entry of the directory points to the same data."""
    storage, count = bytes(1 << 20), 1000
    stream = io.BytesIO()
    tensors = [torch.zeros(1 << 18) for _ in range(3)]
    torch.save(tensors, stream)
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(path, "w") as target:
        names = source.namelist()
        for name in names:
            if "/data/" not in name:
                target.writestr(name, source.read(name))
        first = next(name for name in names if name.endswith("/data/0"))
        target.writestr(first, storage)
        entry = target.getinfo(first)
        for name in names:
            if "/data/" in name and name != first:
                alias = zipfile.ZipInfo(name)
                for key in ("header_offset", "CRC", "compress_size", "file_size"):
                    setattr(alias, key, getattr(entry, key))
                target.filelist.append(alias)
                target.NameToInfo[name] = alias
    assert path.stat().st_size < count * len(storage)
    with watched(tmp_path), pytest.raises(InputError, match="a.pth"):
        read_torch_archive(path)


@pytest.mark.parametrize("instruction", [b"r\xff\xff\xff\x0f", b"p268435455\n"])
@pytest.mark.parametrize("reader", _PICKLED, ids=str)
def test_numbers_of_objects_cost_no_memory(reader: Reader, instruction: bytes, tmp_path: Path):
    """The unpickler in C keeps a table as long as the highest number: here of 4 GB, found by a coverage-guided run."""
    stream = b"\x80\x02}" + instruction + b"."
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("archive/data.pkl", stream)
        target.writestr("archive/version", b"3\n")
    for data in (archive.getvalue(), stream):
        read_in_watch(reader, data, tmp_path / "x")


def _laughs() -> list:
    """A list whose text would have a million million letters."""
    value: list = ["ha"]
    for _ in range(40):
        value = [value, value]
    return value


_FOLDED = {
    "tensors": lambda: torch.zeros(1, dtype=torch.half).expand(1 << 17, 1 << 17),  # 32 GB
    "lists": _laughs,
}


@pytest.mark.parametrize("what", _FOLDED)
@pytest.mark.parametrize("reader", [reader for reader in _PICKLED if reader.file.endswith((".pth", "-5"))], ids=str)
def test_small_checkpoints_do_not_unfold(reader: Reader, what: str, tmp_path: Path):
    folded, weights = _FOLDED[what](), {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    keys = ("metadata", "epoch", "optimizer", "class_list", "class_tree_list", "class_names", "iteration", "format")
    contents = (
        folded,
        {"weight": folded, "ctx": folded, "prompt_learner.prefix_prompt": folded, "x.cls_score.weight": folded},
        {"model": folded},
        {"state_dict": {"ctx": folded}, "model": {"prompt_learner.prefix_prompt": folded}},
        {"state_dict": {"ctx": torch.ones(4, 8)}, "model": weights, "metadata": {"position": folded}},
        {**dict.fromkeys(keys, folded), "model": weights, "class_description": {"n1": "a"}},
    )
    for content in contents:
        data = torch_bytes(content)
        if reader.name == "CheckpointFolder.load":
            data += hashlib.sha256(data).digest()
        message = read_in_watch(reader, data, tmp_path / "x")
        assert len(message or "") < 1000


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\nbytes\n(I16000000000\ntR",
        b"cbuiltins\nbytearray\n(I16000000000\ntR",
        b"cbuiltins\nlist\n(cbuiltins\nrange\n(I2000000000\ntRtR",
        b"cbuiltins\nstr\n((lp0\n" + b"".join(b"(g%d\ng%d\nlp%d\n" % (n, n, n + 1) for n in range(40)) + b"ttR",
    ],
)
@pytest.mark.parametrize("name", ["detection.pkl", "segmentation.pkl"])
def test_calls_that_a_pickle_may_make_cost_no_memory(name: str, call: bytes, tmp_path: Path):
    reader = reader_named(name)
    assert "a.pkl" in (read_in_watch(reader, b"\x80\x03" + call + b".", tmp_path / "x") or "")


@pytest.mark.parametrize("reader", [reader for reader in readers() if reader.file.endswith(".safetensors")], ids=str)
def test_what_is_quoted_of_a_header_is_short(reader: Reader, tmp_path: Path):
    header = b'{"x": {"dtype": "%s", "shape": [1], "data_offsets": [0, 4]}}' % (b"F" * 9000)
    message = read_in_watch(reader, struct.pack("<Q", len(header)) + header + bytes(4), tmp_path / "x")
    assert message is not None and "a.safetensors" in message and len(message) < 600


def test_compressed_entries_are_refused(tmp_path: Path):
    path = tmp_path / "a.pth"
    stream = io.BytesIO()
    torch.save(torch.zeros(1 << 20), stream)
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with watched(tmp_path), pytest.raises(InputError, match="compressed entries"):
        read_torch_archive(path)


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        ([10, 20, 78], None),
        (":d0^2", None),
        (b":d0^2", None),
        ([10, 20, 79], "add up to 109 pixels"),
        ([1 << 39, 20], "add up to"),
        ([-5, 113], "neither runs"),
        ([10.0, 98], "neither runs"),
        ("zzz", "neither runs"),
        (":d0^", "neither runs"),
        ("o" * 9, "neither runs"),
        (":d0^3", "add up to"),
        ({"a": 1}, "neither runs"),
        (7, "neither runs"),
    ],
)
def test_run_lengths_that_leave_the_image_never_reach_the_decoder(counts, problem):
    checks = [rle_problem]
    if third_party.detectron2_source() == "bundled":
        from detectron2.data.datasets.annotation_file import check_rle

        checks.append(check_rle)
    for check in checks:
        found = check({"size": [9, 12], "counts": counts}, 9, 12)
        assert (found is None) if problem is None else (problem in found)


def test_run_lengths_are_counted_as_pycocotools_writes_them():
    import pycocotools.mask as mask_util

    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = np.asfortranarray((rng.random((37, 53)) < share).astype(np.uint8))
        assert rle_problem(mask_util.encode(mask), 37, 53) is None


@pytest.mark.parametrize(
    ("what", "row", "problem"),
    [
        ("image", 3, "image number 0 is a int, expected an object"),
        ("image", {}, "image number 0 has no 'id'"),
        ("image", {"id": []}, "'id' is \\[\\], expected a whole number or text"),
        ("image", {"id": 1, "file_name": "a\0b"}, "'file_name' is .*, expected the name of a file"),
        ("image", {"id": 1, "height": 0}, "'height' is 0, expected a number of pixels"),
        ("image", {"id": 1, "width": 10**9}, "'width' is 1000000000, expected a number of pixels"),
        ("image", {"id": 1, "neg_category_ids": 5}, "'neg_category_ids' is 5, expected a list of ids"),
        ("image", {"id": 1, "captions": "a cat"}, "expected a list of texts"),
        ("annotation", {"id": 1, "bbox": [0, 0, 1]}, "expected four finite numbers"),
        ("annotation", {"id": 1, "bbox": [0, 0, 1, float("nan")]}, "expected four finite numbers"),
        ("annotation", {"id": 1, "bbox": [0, 0, 1, 10**30]}, "expected four finite numbers"),
        ("annotation", {"id": 1, "segmentation": [["x"] * 6]}, "expected polygons"),
        ("annotation", {"id": 1, "segmentation": {"counts": []}}, "expected polygons"),
        ("annotation", {"id": 1, "iscrowd": [1]}, "'iscrowd' is \\[1\\], expected 0 or 1"),
        ("category", {"id": 1, "synonyms": ["a", 2]}, "expected a list of texts"),
        ("category", {"id": 1, "image_count": -1}, "expected a number of things"),
    ],
)
def test_a_row_with_an_odd_field_is_named(what, row, problem):
    import re

    assert re.search(problem, find_wrong_row([row], what) or "")


@pytest.mark.parametrize("corner", [1 << 31, 1 << 28, -(1 << 40), float("nan"), "x"])
@pytest.mark.parametrize("name", ["load.coco", "load.lvis", "load.extended_lvis", "load.oid", "CustomData.read"])
def test_polygons_that_lead_far_away_never_reach_the_decoder(name: str, corner: object, tmp_path: Path):
    """Found by a coverage-guided run: pycocotools draws outlines pixel by pixel and ended the process."""
    import json

    reader = reader_named(name)
    content = json.loads(reader.data())
    content["annotations"][0]["segmentation"] = [[corner, 0, 2, 0, 2, 2]]
    message = read_in_watch(reader, json.dumps(content).encode(), tmp_path / "x")
    assert message is not None and "a.json" in message and "segmentation" in message


def test_the_outline_of_a_polygon_is_what_counts():
    checks = [is_outline]
    if third_party.detectron2_source() == "bundled":
        from detectron2.data.datasets import annotation_file

        checks.append(annotation_file.is_outline)
    comb = [number for row in range(30_000) for number in (row % 2 * 300, row)]  # 9 million pixels around
    circle = [1000 + round(900 * f(k / 5000)) for k in range(31_416) for f in (np.cos, np.sin)]
    for check in checks:
        assert not check(comb)
        assert sum(circle) > 2 << 20 and check(circle)
        assert check([0, 0, 4.5, 0, 4, 4]) and not check([0, 0, float("inf"), 0, 1, 1]) and not check([0, [1], 2])


def test_rows_with_ids_of_two_kinds_are_named():
    assert "some ids of the image rows" in (find_wrong_row([{"id": 1}, {"id": "1"}], "image") or "")
    assert find_wrong_row([{"id": 1}, {"id": 2.0}], "image") is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"embed_dim": 10**9}, "embed_dim is 1000000000; at most"),
        ({"text_cfg": {"layers": 100_000}}, "layers is 100000; at most 1000"),
        ({"text_cfg": {"vocab_size": float("inf")}}, "vocab_size is inf; at most"),
        ({"vision_cfg": []}, "vision_cfg is no object"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:someone/else"}}, "expected a plain name"),
        ({"text_cfg": {"hf_model_name": "https://x/y"}}, "expected a plain name"),
    ],
)
def test_a_clip_config_can_neither_fill_the_memory_nor_fetch_a_model(change, problem):
    import json

    config = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}} | change
    with pytest.raises(InputError, match=problem):
        parse_config(json.dumps(config), "a.json")


def test_a_clip_config_of_oblong_images_is_named(tmp_path: Path):
    reader = reader_named("load_clip.config")
    data = reader.data().replace(b'"image_size": 8', b'"image_size": [8, 4]')
    assert "a.json takes images of" in (read_in_watch(reader, data, tmp_path / "x") or "")


def test_a_clip_config_with_too_many_parameters_is_refused_before_they_are_made(tmp_path: Path):
    from prompt_pretrain.clip import clip_from_config

    text = {"context_length": 8, "vocab_size": 4_000_000, "width": 65536, "heads": 2, "layers": 1}
    vision = {"image_size": 8, "layers": 1, "width": 8, "patch_size": 4, "head_width": 4}
    with watched(tmp_path), pytest.raises(InputError, match="parameters; at most"):
        clip_from_config({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text})
