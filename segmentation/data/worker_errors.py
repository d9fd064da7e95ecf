"""What becomes of a sample that cannot be made: skipped, or one clear error also from a worker process."""

import logging
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from detectron2.data.detection_utils import SizeMismatchError
from mask_former.data.label_maps import LabelMapError
from prompt_pretrain.errors import InputError

__all__ = ["CheckedMapper", "SampleError"]

logger = logging.getLogger(__name__)

# What Pillow raises for broken files, beside OSError without a number.
_BROKEN_FILE = (SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class SampleError(InputError):
    """A record of a data set that the user can mend."""

    def __init__(self, text: str) -> None:
        # A DataLoader raises an error of its worker anew, with the traceback for a text: of that, the last line counts.
        lines = [line for line in str(text).splitlines() if line.strip()]
        text = " ".join(lines) if not str(text).startswith("Caught ") else lines[-1]
        super().__init__(text.removeprefix(f"{type(self).__module__}.{type(self).__name__}: "))


class CheckedMapper:
    """A mapper whose errors are :class:`SampleError`.

    Args:
        mapper: record -> sample, or None to have another record taken.
        skip_broken: give None for images and label maps that cannot be read, with a count in the log.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any], *, skip_broken: bool) -> None:
        self.mapper = mapper
        self.skip_broken = skip_broken
        self.skipped = 0

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
            return self._broken(record, error)
        except OSError as error:
            if error.errno is not None:  # the disk's trouble, not the file's
                raise
            return self._broken(record, error)

    def _broken(self, record: dict[str, Any], error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        files = f"{record['file_name']} or its label map" if "sem_seg_file_name" in record else record["file_name"]
        if not self.skip_broken:
            raise SampleError(f"{files} cannot be read: {reason}; fetch it again or drop it") from error
        self.skipped += 1
        logger.warning("left out, number %d in this process: %s: %s", self.skipped, files, reason)
