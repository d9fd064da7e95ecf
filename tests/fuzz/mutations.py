"""Hypothesis strategies: damaged bytes, and json or YAML with anything wrong anywhere."""

import copy
import json
import struct
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

PATHS_OUT = ("../../outside.txt", "/etc/passwd", "..", "a/../../b", "C:\\x", "~/x", "a\0b")
HUGE = (10**30, -(10**30), 1 << 31, 1 << 63, 1e308, -1e308)
ODD = (None, True, False, -1, 0, 1, 7, 0.5, float("nan"), float("inf"), "", "x", "0", "\ud800", "é" * 40, [], {}, [[]])
ODD += ([None], ["x"], [1, 2], [[1, 2, 3]], {"a": 1}, {"id": 1}, {"size": [2, 2], "counts": "x"}, [1e400] * 4)
VALUES = (*ODD, *HUGE, *PATHS_OUT)


def _damage(data: bytes, operation: str, where: float, value: int, length: int) -> bytes:
    at = int(where * len(data))
    if operation == "cut":
        return data[:at]
    if operation == "behead":
        return data[at:]
    if operation == "flip":
        return data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :] if at < len(data) else data
    if operation == "set":
        return data[:at] + bytes([value]) * length + data[at + length :]
    if operation == "number":
        number = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 1 << 24, 65536, 0x10000)[value % 8]
        return data[:at] + struct.pack("<I" if value & 8 else ">I", number) + data[at + 4 :]
    if operation == "insert":
        return data[:at] + bytes([value]) * length + data[at:]
    if operation == "remove":
        return data[:at] + data[at + length :]
    return data[:at] + data[at : at + length] * 3 + data[at + length :]  # repeat


_OPERATIONS = ("cut", "behead", "flip", "flip", "set", "set", "number", "number", "insert", "remove", "repeat")


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` after one to four accidents; sometimes other bytes altogether."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=300))
    for _ in range(draw(st.integers(1, 4))):
        operation = draw(st.sampled_from(_OPERATIONS))
        where = draw(st.floats(0, 1, exclude_max=True))
        # Most of what readers look at stands at the beginning of a file.
        where = where if draw(st.booleans()) else where**4
        data = _damage(data, operation, where, draw(st.integers(0, 255)), draw(st.sampled_from((1, 2, 4, 8, 64))))
    return data


def paths_of(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a tree of dicts and lists; () is the whole."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths_of(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from paths_of(inner, (*path, number))


@st.composite
def changed_tree(draw: st.DrawFn, tree: Any) -> Any:
    """A copy of ``tree`` with one to three places replaced, removed, doubled or made wrong."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths_of(tree))))
        operation = draw(st.sampled_from(("replace", "replace", "replace", "remove", "double", "wrap")))
        if not path:
            if operation == "replace":
                tree = copy.deepcopy(draw(st.sampled_from(VALUES)))
            continue
        parent = tree
        for step in path[:-1]:
            parent = parent[step]
        if operation == "replace":
            parent[path[-1]] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif operation == "remove":
            del parent[path[-1]]
        elif operation == "wrap":
            parent[path[-1]] = [parent[path[-1]]]
        elif isinstance(parent, list):
            parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
        else:
            parent[f"{path[-1]}x"] = copy.deepcopy(parent[path[-1]])
    return tree


@st.composite
def changed_json(draw: st.DrawFn, tree: Any) -> bytes:
    """Json text of a changed tree; sometimes deeply nested, with a key given twice, or in another encoding."""
    text = json.dumps(draw(changed_tree(tree)), ensure_ascii=draw(st.booleans()))
    trick = draw(st.integers(0, 19))
    if trick == 0:
        depth = draw(st.sampled_from((500, 100_000)))
        text = "[" * depth + "]" * depth
    elif trick == 1:
        text = text.replace("null", "9" * 6000).replace("1", "1" + "0" * 400, 1)
    elif trick == 2 and text.startswith("{"):
        text = '{"id": 1, "id": [2], "images": 3,' + text[1:]
    elif trick == 3:
        inner = draw(st.sampled_from(('{"a":', "[")))
        text = text[:-1] + ("," if len(text) > 2 else "") + ('"deep":' if text.startswith("{") else "") + inner * 3000
    elif trick == 4:
        return text.encode("utf-16", "surrogatepass")
    elif trick == 5:
        return draw(damaged(text.encode("utf-8", "surrogatepass")))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def changed_lines(draw: st.DrawFn, text: str) -> bytes:
    """A text file with lines replaced by odd ones."""
    lines = text.splitlines()
    odd = ("", " ", "\0", "\ud800", "x" * 5000, "n01440764", "1 2 3", "=", ",,,,", '"', "a\tb\tc", "../../x", "\x1b[2J")
    for _ in range(draw(st.integers(1, 4))):
        lines[draw(st.integers(0, len(lines) - 1))] = draw(st.one_of(st.sampled_from(odd), st.text(max_size=30)))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


_YAML_ODD = (
    "!!python/object/apply:os.system ['touch hacked']",
    '!!python/object/apply:eval [\'__import__("os").system("touch hacked")\']',
    "!!python/name:os.system",
    "!!python/object/new:type {args: ['x', [], {}]}",
    "!!binary aGFja2Vk",
    "2024-01-01",
    "&a [*a]",
    "{a: *b}",
    "{? [1, 2] : 3}",
    "{? {a: 1} : 3}",
    "[1, 2",
    "'1e400'",
    ".nan",
    "-.inf",
    "0x1F",
    "1_000",
    "!!set {a}",
    "!!timestamp x",
    "!!int abc",
    "!!float abc",
    "<<: 1",
    "[" * 400 + "]" * 400,
    "'" + "(" * 300 + ")" * 300 + "'",
    "'" + "9" * 5000 + "'",
    '"\\ud800"',
    "\t",
    "*x",
    "@",
    "'[0] * 10**9'",
    "!!python/object/apply:eval ['[x for x in range(10**9)]']",
    "!!python/object/apply:eval ['9**9**9']",
    "!!python/object/apply:eval ['1 if 1 else 2']",
    "!!python/object/apply:eval ['1.0 // 0']",
    "!!python/object/apply:eval ['int(1e999)']",
    "!!python/tuple [1, 2]",
    *("null", "true", "''", "0", "-1", "x", "[]", "{}", "[x]", "{a: 1}", "1.5", "../x.yaml", "/etc/passwd"),
)


@st.composite
def changed_yaml(draw: st.DrawFn, text: str) -> bytes:
    """A config whose values are replaced by odd ones, some with tags that would run code."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(lines) - 1))
        key, _, _ = lines[number].partition(":")
        operation = draw(st.integers(0, 9))
        value = draw(st.sampled_from(_YAML_ODD))
        if operation == 0:
            lines[number] = value
        elif operation == 1:
            lines.insert(
                number, draw(st.sampled_from(("<<: *x", "1: 2", "null: 3", "? [1]\n: 2", "a.b: 1", "_BASE_: 3")))
            )
        elif operation == 2:
            return draw(damaged(text.encode()))
        else:
            lines[number] = f"{key}: {value}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")
