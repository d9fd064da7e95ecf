"""Makes the stand-ins importable; with the real detectron2 their own tests, ``test_bundle_*``, are left out."""

from pathlib import Path

import third_party

if third_party.detectron2_source() == "installed":
    _own = {path.name for path in Path(__file__).parent.glob("test_bundle_*.py")}
    collect_ignore = sorted(_own - {"test_bundle_chooser.py"})  # which of the two is used can be tested with either
