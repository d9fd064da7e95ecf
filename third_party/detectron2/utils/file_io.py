"""The one path manager of this package: local paths, ``http(s)://`` and ``detectron2://``."""

from typing import Any

from iopath.common.file_io import HTTPURLHandler, PathHandler, get_cache_dir
from iopath.common.file_io import PathManager as _PathManager

__all__ = ["PathHandler", "PathManager"]


class _DownloadHandler(HTTPURLHandler):
    """Downloads into iopath's cache; when that fails, says what was wanted and where to put it by hand."""

    def _get_local_path(self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs: Any) -> str:
        try:
            return super()._get_local_path(path, force=force, cache_dir=cache_dir, **kwargs)
        except OSError as error:
            place = f"{get_cache_dir(cache_dir)}/{path.split('://', 1)[1].partition('/')[2]}"
            raise OSError(f"cannot download {path} ({error}); without a network, put the file at {place}") from error

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        """Whether it can be had, which only downloading it tells."""
        try:
            self._get_local_path(path, **kwargs)
        except OSError:
            return False
        return True

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._isfile(path, **kwargs)


class _ModelZooHandler(_DownloadHandler):
    """``detectron2://X`` is the file X of detectron2's public folder of weights."""

    PREFIX = "detectron2://"
    FOLDER = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs: Any) -> str:
        url = self.FOLDER + path.removeprefix(self.PREFIX)
        return super()._get_local_path(url, force=force, cache_dir=cache_dir, **kwargs)


# An instance under the name of its class, as in detectron2; what is registered here stays out of iopath's global one.
PathManager = _PathManager()
PathManager.register_handler(_DownloadHandler())
PathManager.register_handler(_ModelZooHandler())
