"""One clear error for a record of a test set that cannot be used, also from a worker process."""

import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from detectron2.data.detection_utils import SizeMismatchError
from mask_former.data.label_maps import LabelMapError
from prompt_pretrain.errors import InputError

__all__ = ["CheckedMapper", "SampleError"]

# What Pillow raises for broken files, beside OSError without a number.
_BROKEN_FILE = (SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class SampleError(InputError):
    """A record of a data set that the user can mend."""

    def __init__(self, text: str) -> None:
        # A DataLoader raises an error of its worker anew, with the traceback for a text: of that, the last line counts.
        lines = [line for line in str(text).splitlines() if line.strip()]
        text = lines[-1] if str(text).startswith("Caught ") else " ".join(lines)
        super().__init__(text.removeprefix(f"{type(self).__module__}.{type(self).__name__}: "))


class CheckedMapper:
    """A mapper whose errors are :class:`SampleError`; training has its own way, in ``TrainingLoader``."""

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        """The sample.

        Raises:
            SampleError: a missing file, sizes that differ, labels that are no class, or a file that cannot be read.
        """
        try:
            return self.mapper(record)
        except FileNotFoundError as error:
            raise SampleError(
                f"{error.filename or record['file_name']} does not exist; check the folders of the data set below "
                f"DETECTRON2_DATASETS"
            ) from error
        except (LabelMapError, SizeMismatchError, InputError) as error:
            raise SampleError(str(error)) from error
        except _BROKEN_FILE as error:
            raise _broken(record, error) from error
        except OSError as error:
            if error.errno is not None:  # the disk's trouble, not the file's
                raise
            raise _broken(record, error) from error


def _broken(record: dict[str, Any], error: Exception) -> SampleError:
    files = f"{record['file_name']} or its label map" if "sem_seg_file_name" in record else record["file_name"]
    return SampleError(f"{files} cannot be read ({str(error) or type(error).__name__}); fetch it again or drop it")
