"""Changes that leave a file's container whole, so that what is inside of it is looked at and not only its checksum."""

import hashlib
import io
import json
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from tests.fuzz.mutations import VALUES, paths_of

Change = Callable[[bytes, int], bytes]
"""Changes bytes, the result has at most so many; libFuzzer's own changes behave like that."""

_PNG_START = b"\x89PNG\r\n\x1a\n"
_HASH_BYTES = hashlib.sha256().digest_size


def change_inside(data: bytes, file: str, limit: int, change: Change, rng: random.Random) -> bytes | None:
    """``data`` of the file named ``file`` with one part of it changed and its lengths and checksums made right again.

    None where the file has no container that is known here, or is too damaged to be taken apart.
    """
    try:
        if file.endswith((".json", "last_checkpoint")) or data[:1] in (b"{", b"["):
            changed = change_tree(json.loads(data), rng)
            return json.dumps(changed).encode("utf-8", "surrogatepass")
        if file.startswith("state-"):  # a SHA-256 at the end
            body = change_inside(data[:-_HASH_BYTES], "a.pth", limit - _HASH_BYTES, change, rng)
            return None if body is None else body + hashlib.sha256(body).digest()
        if data[:2] == b"PK":
            return _change_entry(data, limit, change, rng)
        if file.endswith(".safetensors"):
            return _change_header(data, limit, change, rng)
        if file.endswith(".npy"):
            return _change_literal(data, limit, change)
        if file.endswith(".tar"):
            return _change_block(data, change, rng)
        if data[:8] == _PNG_START:
            return _change_chunk(data, limit, change, rng)
    except Exception:  # of whatever kind: the bytes are damaged already, and plain changes go on with them
        return None
    return None


def change_tree(tree: Any, rng: random.Random) -> Any:
    """``tree``, changed in place at one to three places."""
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(list(paths_of(tree)))
        if not path:
            continue
        parent = tree
        for step in path[:-1]:
            parent = parent[step]
        key = path[-1]
        operation = rng.randrange(6)
        if operation < 3:
            parent[key] = json.loads(json.dumps(rng.choice(VALUES)))
        elif operation == 3:
            del parent[key]
        elif operation == 4:
            parent[key] = [parent[key]]
        elif isinstance(parent, list):
            parent.insert(key, parent[key])
        else:
            other = rng.choice(list(paths_of(tree)))
            if other:
                parent[str(other[-1])] = json.loads(json.dumps(parent[key]))
    return tree


def _change_entry(data: bytes, limit: int, change: Change, rng: random.Random) -> bytes:
    """A zip archive with one of its entries changed; most often the pickle."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(result, "w") as target:
        names = source.namelist()
        pickles = [name for name in names if name.endswith(".pkl")]
        chosen = rng.choice(pickles if pickles and rng.random() < 0.8 else names)
        for name in names:
            content = source.read(name)
            if name == chosen:
                content = change(content, max(1, min(limit // 2, 2 * len(content) + 64)))
            target.writestr(name, content)
    return result.getvalue()


def _change_header(data: bytes, limit: int, change: Change, rng: random.Random) -> bytes:
    """A safetensors file with its json header changed and the header's length made right."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.7:
        header = json.dumps(change_tree(json.loads(header), rng)).encode("utf-8", "surrogatepass")
    else:
        header = change(header, max(1, limit - 8 - len(body)))
    return struct.pack("<Q", len(header)) + header + body


def _change_literal(data: bytes, limit: int, change: Change) -> bytes:
    """An ``.npy`` file with its header, a Python literal, changed and the header's length made right."""
    (length,) = struct.unpack("<H", data[8:10])
    header, body = data[10 : 10 + length], data[10 + length :]
    header = change(header, max(1, min(0xFFFF, limit - 10 - len(body))))
    return data[:8] + struct.pack("<H", len(header)) + header + body


def _change_block(data: bytes, change: Change, rng: random.Random) -> bytes:
    """A tar archive with one block changed, its checksum made right."""
    number = rng.randrange(max(1, len(data) // tarfile.BLOCKSIZE))
    headers = [at for at in range(0, len(data), tarfile.BLOCKSIZE) if data[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(headers) if headers and rng.random() < 0.8 else number * tarfile.BLOCKSIZE
    block = data[at : at + tarfile.BLOCKSIZE]
    if rng.random() < 0.6:  # one field of the header: name, size, kind, link, prefix
        start, stop = rng.choice(((0, 100), (124, 136), (156, 157), (157, 257), (257, 265), (345, 500)))
        block = block[:start] + change(block[start:stop], stop - start).ljust(stop - start, b"\0") + block[stop:]
    else:
        block = change(block, tarfile.BLOCKSIZE)
    block = block[: tarfile.BLOCKSIZE].ljust(tarfile.BLOCKSIZE, b"\0")
    total = 256 + sum(block[:148]) + sum(block[156:])
    block = block[:148] + b"%06o\0 " % total + block[156:]
    return data[:at] + block + data[at + tarfile.BLOCKSIZE :]


def _change_chunk(data: bytes, limit: int, change: Change, rng: random.Random) -> bytes:
    """A PNG with one chunk changed, its length and CRC made right."""
    chunks = []
    at = len(_PNG_START)
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append(data[at + 4 : at + 8 + length])
        at += 12 + length
    number = rng.randrange(len(chunks))
    kind, content = chunks[number][:4], chunks[number][4:]
    chunks[number] = kind + change(content, max(1, min(limit // 2, 2 * len(content) + 64)))
    return _PNG_START + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
