"""Whether the packages of the extra `export` are installed."""

import importlib.util

import pytest

_MISSING = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(_MISSING), reason=f"{', '.join(_MISSING)} missing: pip install -e '.[export]'")
