"""Reading YAML files with inheritance (``_BASE_``) without running code from them."""

import ast
import logging
import operator
import os
from collections.abc import Callable, Iterator
from typing import IO, Any

import yaml
from fvcore.common.config import BASE_KEY

_MAX_LENGTH = 10_000
_MAX_DEPTH = 50
_MAX_NODES = 200_000
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_CALLS: dict[str, Callable[..., Any]] = {"int": int, "float": float, "round": round}


class _Loader(yaml.SafeLoader):
    """Plain data, tuples, and the arithmetic that ``evaluate_arithmetic`` knows."""

    def get_single_node(self) -> yaml.Node | None:
        """Refuses anchors that stand for each other many times: a text of 1 KB could unfold without end."""
        top = super().get_single_node()
        waiting: list[yaml.Node] = [] if top is None else [top]
        left = _MAX_NODES
        while waiting:
            node = waiting.pop()
            left -= 1
            if isinstance(node, yaml.MappingNode):
                waiting += [each for pair in node.value for each in pair]
            elif isinstance(node, yaml.SequenceNode):
                waiting += node.value
            if left < len(waiting):
                problem = f"more than {_MAX_NODES:,} values, counted wherever an anchor stands for them"
                raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return top


def _construct_eval(loader: _Loader, node: yaml.Node) -> Any:
    arguments = loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else []
    try:
        if len(arguments) != 1 or not isinstance(arguments[0], str):
            raise ValueError("expected one expression in quotes")
        return evaluate_arithmetic(arguments[0])
    except (ArithmeticError, SyntaxError, TypeError, ValueError) as error:
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


def _construct_tuple(loader: _Loader, node: yaml.Node) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _construct_eval)
_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)


def load_yaml_with_base(
    filename: str, open_file: Callable[[str], IO[Any]], allow_unsafe: bool = False
) -> dict[str, Any]:
    """The content of ``filename`` merged over that of the files that its ``_BASE_`` names.

    Of several bases, later ones win over earlier ones. Nodes merge key by key, anything else is replaced.

    Raises:
        AssertionError: a node where a base has a plain value.
        ValueError: not a YAML mapping, code that is not allowed, or files that are each other's base.
    """
    return _load(filename, open_file, allow_unsafe, ())


def _load(
    filename: str, open_file: Callable[[str], IO[Any]], allow_unsafe: bool, heirs: tuple[str, ...]
) -> dict[str, Any]:
    if filename in heirs:
        raise ValueError(f"{' -> '.join([*heirs, filename])}: {BASE_KEY} leads back to where it started")
    try:
        content = _read(filename, open_file, allow_unsafe)
    except FileNotFoundError as error:
        if not heirs:
            raise
        raise FileNotFoundError(f"{heirs[-1]}: no file {filename}, which {BASE_KEY} names") from error
    bases = content.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ValueError(f"{filename}: {BASE_KEY} is {base!r}, expected the name of a file or a list of names")
        base = _locate(base, filename)
        if os.path.exists(base) and not os.path.isfile(base):  # /dev/zero has no end
            raise ValueError(f"{filename}: {BASE_KEY} names {base}, which is no file")
        _merge(_load(base, open_file, allow_unsafe, (*heirs, filename)), merged)
    _merge(content, merged)
    return merged


def _locate(base: str, heir: str) -> str:
    """The path of a base: relative to the file that names it, unless absolute or a URL."""
    base = os.path.expanduser(base)
    if os.path.isabs(base) or "://" in base:
        return base
    if "://" in heir:
        return f"{heir.rpartition('/')[0]}/{base}"
    return os.path.join(os.path.dirname(heir), base)


def _merge(new: dict[str, Any], into: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise AssertionError(f"Cannot inherit key '{key}' from base!")
            _merge(value, into[key])
        else:
            into[key] = value


def _read(filename: str, open_file: Callable[[str], IO[Any]], allow_unsafe: bool) -> dict[str, Any]:
    with open_file(filename) as file:
        text = file.read()
    try:
        try:
            content = yaml.load(text, Loader=_Loader)
        except yaml.constructor.ConstructorError:
            if not allow_unsafe:
                raise
            logging.getLogger(__name__).warning("%s holds Python tags: loading it runs the code in it", filename)
            content = yaml.unsafe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{filename}{_describe(error)}") from error
    except Exception as error:  # yaml's constructors of numbers and dates, and nodes without end
        if allow_unsafe:
            raise
        raise ValueError(f"{filename}: not valid YAML: {' '.join(str(error).split())[:200]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{filename} holds a {type(content).__name__}, expected a mapping of configuration keys")
    _check_keys(content, filename)
    return content


def _check_keys(content: dict[Any, Any], filename: str, depth: int = 1) -> None:
    if depth > _MAX_DEPTH:  # an anchor may stand for a node around itself
        raise ValueError(f"{filename}: nodes within nodes, more than {_MAX_DEPTH} deep")
    for key, value in content.items():
        if not isinstance(key, str):
            raise ValueError(f"{filename}: {key!r} is no name of a configuration key")
        if isinstance(value, dict):
            _check_keys(value, filename, depth + 1)


def _describe(error: yaml.YAMLError) -> str:
    """In one line: where and what; for code, what can be done about it."""
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}" if mark else ""
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    if not isinstance(error, yaml.constructor.ConstructorError):
        return f"{place}: not valid YAML: {problem}"
    return (
        f"{place}: {problem}; besides plain values, only list comprehensions of arithmetic over range are read. "
        f"If you trust the file, pass allow_unsafe=True to merge_from_file"
    )


def evaluate_arithmetic(expression: str) -> Any:
    """The value of an expression of numbers, strings, lists, ``+ - * / // %``, ``int``, ``float``, ``round`` and list
    comprehensions over one ``range``.

    Raises:
        ValueError: anything else, or more than 10000 elements.
        SyntaxError: not a Python expression.
    """
    return _evaluate(ast.parse(expression.strip(), mode="eval").body, {})


def _evaluate(node: ast.expr, variables: dict[str, Any]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.Name) and node.id in variables:
        return variables[node.id]
    if isinstance(node, ast.List):
        return [_evaluate(element, variables) for element in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_evaluate(element, variables) for element in node.elts)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_number(node.operand, variables))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_number(node.left, variables), _number(node.right, variables))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS and not node.keywords:
        return _CALLS[node.func.id](*[_number(argument, variables) for argument in node.args])
    # One range and no nesting keeps the work below _MAX_LENGTH steps.
    if isinstance(node, ast.ListComp) and len(node.generators) == 1 and not node.generators[0].ifs and not variables:
        return [_evaluate(node.elt, inner) for inner in _iterate(node.generators[0], variables)]
    raise ValueError(f"not allowed in a configuration file: {ast.unparse(node)}")


def _number(node: ast.expr, variables: dict[str, Any]) -> int | float:
    """Numbers only: a string or list times a large number would fill the memory."""
    value = _evaluate(node, variables)
    if not isinstance(value, int | float):
        raise ValueError(f"{ast.unparse(node)} is not a number")
    return value


def _iterate(generator: ast.comprehension, variables: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The variables at each step of ``for NAME in range(...)``."""
    call = generator.iter
    is_range = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range"
    if not is_range or call.keywords or not isinstance(generator.target, ast.Name):
        raise ValueError(f"not allowed in a configuration file: {ast.unparse(generator).strip()}")
    values = range(*[_number(argument, variables) for argument in call.args])
    if len(values) > _MAX_LENGTH:
        raise ValueError(f"{ast.unparse(call)} has {len(values)} elements, at most {_MAX_LENGTH} are allowed")
    for value in values:
        yield {**variables, generator.target.id: value}
