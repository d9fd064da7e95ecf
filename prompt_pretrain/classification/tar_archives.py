"""Images inside uncompressed tar archives, read where they lie: nothing is unpacked, nothing leaves the archive.

An archive is scanned once; its index (member names, offsets, sizes) is cached, and checked against the archive's
size and modification time. The scan is our own: it trusts no number in a header, always moves forward, and takes
microseconds per member.
"""

import io
import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np

from prompt_pretrain.classification.cache_folder import cache_file, load_arrays, save_arrays
from prompt_pretrain.classification.file_names import is_image_name
from prompt_pretrain.classification.items import ARCHIVE_MARK
from prompt_pretrain.errors import InputError

logger = logging.getLogger(__name__)

BLOCK = 512
MAX_MEMBER_BYTES = 1 << 28  # 256 MiB; larger members, packed or unpacked, are refused
_MAX_NAME_BYTES = 1 << 16
_MAX_SIZE = 1 << 60  # bytes of a member: beyond any disk, and sums of them fit into 64 bits
_MAX_INDEXES = 1024  # kept in memory, about 40 KB each
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class TarIndex:
    """Where the image members of one archive are.

    Attributes:
        names: (n,) bytes array, sorted.
        offsets: (n,) int64, first byte of each member's data.
        sizes: (n,) int64, bytes.
        stamp: (2,) int64, size and modification time (ns) of the archive.
    """

    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    stamp: np.ndarray

    def find(self, name: str) -> tuple[int, int]:
        """(offset, size) of a member.

        Raises:
            KeyError: there is no such member.
        """
        wanted = os.fsencode(name)
        position = int(np.searchsorted(self.names, wanted))
        if position == len(self.names) or bytes(self.names[position]) != wanted:
            raise KeyError(name)
        return int(self.offsets[position]), int(self.sizes[position])


class _Member(NamedTuple):
    name: bytes
    offset: int
    size: int


_indexes: OrderedDict[str, TarIndex] = OrderedDict()  # least recently used first


def is_archive_member(path: str) -> bool:
    """Whether ``path`` has the form ``ARCHIVE.tar::MEMBER``."""
    return ARCHIVE_MARK in path


def split_member_path(path: str) -> tuple[str, str]:
    """Archive and member name of ``ARCHIVE.tar::MEMBER``."""
    stem, _, member = path.partition(ARCHIVE_MARK)
    return stem + ".tar", member


def read_member(path: str) -> bytes:
    """The bytes of an archive member given as ``ARCHIVE.tar::MEMBER``; a gzip-compressed member is unpacked.

    Raises:
        OSError: the archive or the member is missing, cut short, damaged or larger than ``MAX_MEMBER_BYTES``.
        InputError: the archive is none.
    """
    archive, name = split_member_path(path)
    try:
        offset, size = open_index(archive).find(name)
    except KeyError:
        raise OSError(f"{archive} has no such member") from None
    if size > MAX_MEMBER_BYTES:
        raise OSError(f"the member has {size:,} bytes, more than the {MAX_MEMBER_BYTES:,} allowed")
    with open(archive, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise OSError(f"the archive is cut short: {len(data):,} of the member's {size:,} bytes are there")
    return _gunzip(data) if data.startswith(_GZIP) else data


def entry_data(entry: bytes, archive: str) -> bytes:
    """The data of one member, from the piece of an archive that starts with its header; unpacked if gzip-compressed.

    Args:
        entry: the member's blocks; headers that hold a long name may precede its own.
        archive: what errors name.

    Raises:
        OSError: the data is cut short, damaged or unpacks to more than ``MAX_MEMBER_BYTES``.
        InputError: there is no header of a regular file at the beginning.
    """
    member = next(_members(io.BytesIO(entry), archive, len(entry)), None)
    if member is None:
        raise InputError(f"{archive} has no file where its index says; make the index again")
    data = entry[member.offset : member.offset + member.size]
    if len(data) < member.size:
        raise OSError(f"{len(data):,} of the member's {member.size:,} bytes are there")
    return _gunzip(data) if data.startswith(_GZIP) else data


def open_index(archive: str) -> TarIndex:
    """The index of ``archive``: from memory, from its cache file, or by scanning the archive.

    Raises:
        OSError: the archive cannot be read.
        InputError: it is not an uncompressed tar archive.
    """
    status = os.stat(archive)
    stamp = np.array([status.st_size, status.st_mtime_ns], dtype=np.int64)
    index = _indexes.get(archive)
    if index is None or not np.array_equal(index.stamp, stamp):
        index = _cached_index(archive, stamp)
    _indexes[archive] = index
    _indexes.move_to_end(archive)
    while len(_indexes) > _MAX_INDEXES:
        _indexes.popitem(last=False)
    return index


def _cached_index(archive: str, stamp: np.ndarray) -> TarIndex:
    file = cache_file("tar_indexes", archive, ".npz")
    arrays = load_arrays(file, ("names", "offsets", "sizes", "stamp"))
    if arrays is not None and np.array_equal(arrays["stamp"], stamp) and _is_index(**arrays):
        return TarIndex(**arrays)
    index = scan_archive(archive, stamp)
    save_arrays(file, vars(index))
    return index


def _is_index(names: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, stamp: np.ndarray) -> bool:
    numbers = (offsets, sizes)
    return (names.ndim, names.dtype.kind) == (1, "S") and all(
        each.dtype == np.int64 and each.shape == names.shape and bool((each >= 0).all()) for each in numbers
    )


def scan_archive(archive: str, stamp: np.ndarray) -> TarIndex:
    """Find the image members of an archive: regular files with an image's name, inside the archive's own folder.

    Links, hidden files and names that lead elsewhere (``/etc/x``, ``../x``) are left out. A member whose data is cut
    short stays in, so that reading it tells. Of equal names the last one counts, as when unpacking.

    Raises:
        InputError: compressed as a whole, or no tar archive, or damaged.
    """
    members: dict[bytes, _Member] = {}
    outside = 0
    with open(archive, "rb") as file:
        for member in _members(file, archive, int(stamp[0])):
            parts = [part for part in member.name.split(b"/") if part != b"."]
            if not parts or not parts[0] or b".." in parts or b"\0" in member.name:
                outside += 1
                continue
            hidden = any(part.startswith(b".") for part in parts)
            if not hidden and is_image_name(os.fsdecode(parts[-1])):
                name = b"/".join(parts)
                members[name] = _Member(name, member.offset, member.size)
    if outside:
        logger.warning("ignored %d members of %s whose names lead out of the archive", outside, archive)
    found = [members[name] for name in sorted(members)]
    return TarIndex(
        np.array([member.name for member in found], dtype=np.bytes_),
        np.array([member.offset for member in found], dtype=np.int64),
        np.array([member.size for member in found], dtype=np.int64),
        stamp,
    )


def _members(file: IO[bytes], archive: str, length: int) -> Iterator[_Member]:
    """The regular files of an archive, with GNU and POSIX long names applied."""
    position = 0
    name: bytes | None = None
    size: int | None = None
    while position + BLOCK <= length:
        file.seek(position)
        header = file.read(BLOCK)
        if not header.strip(b"\0"):
            return  # the end mark
        _check_header(header, archive, position)
        kind = header[156:157]
        own_size = _number(header[124:136])
        data = position + BLOCK
        if kind in b"LKxgX" and own_size > _MAX_NAME_BYTES:
            raise InputError(f"{archive} is damaged: a name of {own_size:,} bytes; copy or download it again")
        if kind == b"L":
            name = file.read(own_size).rstrip(b"\0")
        elif kind in b"xX":
            records = _pax_records(file.read(own_size))
            name = records.get(b"path", name)
            digits = records.get(b"size", b"")
            if digits.isdigit():
                size = int(digits) if len(digits) < 20 else _MAX_SIZE
                if size >= _MAX_SIZE:
                    raise InputError(f"{archive} is damaged at byte {position:,}; copy or download it again")
        elif kind in b"Kg":
            pass
        else:
            own_size = 0 if kind in b"123456" else own_size if size is None else size  # links and folders hold no data
            full_name = name if name is not None else _header_name(header)
            if kind in b"07\0" and full_name and not full_name.endswith(b"/"):
                yield _Member(full_name, data, own_size)
            name = size = None
        position = data + -(-own_size // BLOCK) * BLOCK
    logger.warning("%s ends without an end mark; it may have been cut short", archive)


def _check_header(header: bytes, archive: str, position: int) -> None:
    field = header[148:156].strip(b" \0")
    computed = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    try:
        if int(field, 8) == computed and 0 <= _number(header[124:136]) < _MAX_SIZE:
            return
    except ValueError:
        pass
    if position == 0 and header.startswith(_GZIP):
        raise InputError(f"{archive} is compressed; expected a plain tar archive: unpack it once with gunzip")
    if position == 0:
        raise InputError(f"{archive} is not a tar archive; expected one with the images of a class")
    raise InputError(f"{archive} is damaged at byte {position:,}; copy or download it again")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for sizes of 8 GiB and more
        return int.from_bytes(field, "big", signed=True) & ((1 << 87) - 1) if field[0] == 0x80 else -1
    return int(field.strip(b" \0") or b"0", 8)


def _header_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """``length key=value\\n`` records; what does not follow that form is left out."""
    records = {}
    while data:
        digits, blank, _ = data.partition(b" ")
        if not blank or not digits.isdigit() or not len(digits) + 2 < int(digits) <= len(data):
            break
        key, _, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        records[key] = value
        data = data[int(digits) :]
    return records


def _gunzip(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(data, MAX_MEMBER_BYTES)
    except zlib.error as error:
        raise OSError(f"the compressed member is damaged ({error})") from error
    if unpacker.unconsumed_tail:
        raise OSError(f"the member unpacks to more than the {MAX_MEMBER_BYTES:,} bytes allowed")
    if not unpacker.eof:
        raise OSError("the compressed member is cut short")
    return unpacked
