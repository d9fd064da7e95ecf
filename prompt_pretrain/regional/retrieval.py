"""Images of the web that look like a class: search in an index of CLIP image features.

An index is a folder of our own (``features.npy``, ``urls.txt``, ``index.json``; see :func:`build_index`), searched
exactly in blocks, or a FAISS file with a list of URLs (``.txt``, ``.npy``, or the HDF5 table ``dataset/url`` of the
published LAION-400M index).
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from prompt_pretrain.atomic_files import atomic_writer, write_json, write_npy
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.classification.file_names import is_image_name
from prompt_pretrain.classification.items import ImageItem
from prompt_pretrain.classification.transforms import eval_transform
from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.feature_cache import FeatureCache
from prompt_pretrain.regional.classes import RegionalClass

_FORMAT = "regional image index 1"
_ROWS_PER_BLOCK = 1 << 16  # of features compared at once; a block of 512 float32 takes 128 MB
_QUERIES_PER_BLOCK = 256


class ImageIndex(Protocol):
    """What retrieval needs of an index.

    Attributes:
        clip_id, image_tower: what made the features; "" where it is not known.
        width: of the features.
    """

    clip_id: str
    image_tower: str
    width: int

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarities and positions, both (q, k), best first; position -1 where there are fewer images.

        Args:
            queries: (q, D) float32, unit norm.
        """
        ...

    def url(self, position: int) -> str:
        """Address of an image."""
        ...


class ExactIndex:
    """All features compared with every query, block by block, on the CPU or ``device``.

    Args:
        features: (n, D) of any floating type, normalised here; e.g. memory-mapped.
    """

    def __init__(
        self,
        features: np.ndarray,
        urls: Sequence[str],
        *,
        clip_id: str = "",
        image_tower: str = "",
        device: torch.device | str = "cpu",
        rows_per_block: int = _ROWS_PER_BLOCK,
    ) -> None:
        if features.ndim != 2 or len(features) != len(urls):
            raise InputError(f"an index needs one address per feature; found {features.shape} and {len(urls)}")
        self.features, self.urls = features, urls
        self.clip_id, self.image_tower = clip_id, image_tower
        self.width = features.shape[1]
        self._device, self._rows = torch.device(device), rows_per_block

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = [self._search(part, k) for part in torch.from_numpy(queries).split(_QUERIES_PER_BLOCK)]
        scores, positions = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
        return scores, positions

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        queries = queries.to(self._device)
        values = queries.new_full((len(queries), k), -torch.inf)
        positions = torch.full((len(queries), k), -1, dtype=torch.int64, device=self._device)
        for start in range(0, len(self.features), self._rows):
            part = np.array(self.features[start : start + self._rows], dtype=np.float32)  # a memory map stays unchanged
            block = torch.nn.functional.normalize(torch.from_numpy(part).to(self._device), dim=1)
            scores, columns = torch.topk(queries @ block.T, min(k, len(block)), dim=1)
            values, positions = _best(
                torch.cat([values, scores], dim=1), torch.cat([positions, columns + start], dim=1), k
            )
        return values.cpu(), positions.cpu()

    def url(self, position: int) -> str:
        return self.urls[position]


def _best(values: Tensor, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest values with their positions, the lowest position first among equal ones."""
    order = positions.argsort(dim=1)
    values, positions = values.gather(1, order), positions.gather(1, order)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    return values.gather(1, order), positions.gather(1, order)


class FaissIndex:
    """A FAISS file of unit-norm image features under the inner product.

    Raises:
        InputError: faiss is not installed, or the file is no index.
    """

    def __init__(self, path: str | os.PathLike, urls: Sequence[Any]) -> None:
        faiss = _import("faiss", "pip install faiss-cpu")
        if not Path(path).is_file():
            raise InputError(f"no FAISS index {path}; give its file, or a folder made by: regional_prompt index")
        try:
            self._index = faiss.read_index(os.fspath(path))
        except RuntimeError as error:
            raise InputError(f"{path} is no FAISS index ({str(error).splitlines()[0]})") from error
        self.urls = urls
        self.clip_id = self.image_tower = ""
        self.width = int(self._index.d)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)

    def url(self, position: int) -> str:
        # The published code tests the upper bound alone and takes the last row for -1.
        found = self.urls[position]
        return found.decode() if isinstance(found, bytes) else str(found)


def open_index(
    path: str | os.PathLike, urls: str | os.PathLike | None = None, *, device: torch.device | str = "cpu"
) -> ImageIndex:
    """The index in a folder of :func:`build_index`, or a FAISS file with its ``urls``.

    Raises:
        InputError: neither, or a damaged one.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, device)
    if urls is None:
        raise InputError(f"{path} is no folder of an index; a FAISS file needs its addresses, give --urls too")
    return FaissIndex(path, _read_urls(Path(urls)))


def build_index(
    clip: Clip,
    images: str | os.PathLike,
    output: str | os.PathLike,
    *,
    base_url: str = "",
    batch_size: int = 64,
    num_workers: int = 0,
    cache_folder: str | os.PathLike | None = None,
    progress: bool = False,
) -> int:
    """Make an index of all images below ``images``; returns their number.

    Args:
        base_url: put before each path relative to ``images``; without it the addresses are these paths, for a
            download from a folder.
    Raises:
        InputError: no image there, or none that can be read.
    """
    root = Path(images).absolute()
    files = sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
        if is_image_name(name)
    )
    if not files:
        raise InputError(f"{root} holds no image; give the folder of images to index")
    cache = FeatureCache.build(
        clip,
        [ImageItem(str(root / file), 0) for file in files],
        eval_transform(clip.image_size, clip.mean, clip.std),
        folder=cache_folder,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
    )
    rows = np.flatnonzero(cache.valid)
    features = np.asarray(cache.features[rows, 0], dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    paths = [Path(files[row]).as_posix() for row in rows]
    output = Path(output)
    write_npy(output / "features.npy", features.astype(np.float16))
    with atomic_writer(output / "urls.txt", "w") as file:
        file.writelines(f"{base_url}{quote(path) if base_url else path}\n" for path in paths)
    header = {"format": _FORMAT, "images": len(rows), "clip_id": clip.clip_id, "image_tower": clip.image_fingerprint}
    write_json(output / "index.json", header)
    return len(rows)


def retrieve(
    index: ImageIndex,
    embeddings: ClassEmbeddings,
    classes: Sequence[RegionalClass],
    output: str | os.PathLike,
    *,
    k: int,
    min_score: float = -1.0,
) -> dict[str, int]:
    """Write ``<output>/<folder>.txt`` for each class: addresses in the order of similarity, repeats dropped.

    Args:
        embeddings: rows of all names, of which those of ``classes`` are asked for.
        k: candidates of each class. min_score: leave out those of lower cosine similarity.
    Returns:
        Folder -> number of addresses.
    Raises:
        InputError: the index belongs to another CLIP, or the embeddings lack a class.
    """
    if k < 1:
        raise InputError(f"the number of candidates is {k}; expected at least 1")
    if index.width != embeddings.width:
        raise InputError(
            f"the index holds features of width {index.width} but the class embeddings have {embeddings.width}; "
            "both must come from one CLIP"
        )
    if index.clip_id and embeddings.clip_id and index.clip_id != embeddings.clip_id:
        raise InputError(
            f"the index was made by {index.clip_id} but the class embeddings by {embeddings.clip_id}; use one CLIP"
        )
    rows = {name: row for row, name in enumerate(embeddings.class_names)}
    absent = [item.name for item in classes if item.name not in rows]
    if absent:
        raise InputError(f"{embeddings.source} has no embedding of {absent[0]!r}; export it for these classes")
    queries = embeddings.normalized()[[rows[item.name] for item in classes]].numpy()
    scores, positions = index.search(queries, k)
    output = Path(output)
    counts, scored = {}, {}
    for item, of_class, places in zip(classes, scores, positions, strict=True):
        found: dict[str, float] = {}
        for score, position in zip(of_class.tolist(), places.tolist(), strict=True):
            if position >= 0 and score >= min_score:
                found.setdefault(index.url(position), round(score, 4))
        with atomic_writer(output / f"{item.folder}.txt", "w") as file:
            file.writelines(f"{url}\n" for url in found)
        counts[item.folder], scored[item.folder] = len(found), list(found.values())
    write_json(output / "scores.json", {"prompt": embeddings.prompt, "k": k, "scores": scored})
    return counts


def _open_folder(path: Path, device: torch.device | str) -> ExactIndex:
    remedy = "make it again with: regional_prompt index"
    try:
        header = json.loads((path / "index.json").read_text(encoding="utf-8"))
        features = np.load(path / "features.npy", mmap_mode="r", allow_pickle=False)
        urls = (path / "urls.txt").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path} is no index: {error.filename} is missing; {remedy}") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"the index {path} is damaged ({error}); {remedy}") from error
    if header.get("format") != _FORMAT or not header.get("images") == len(features) == len(urls):
        raise InputError(f"the index {path} is of another format or its parts differ in length; {remedy}")
    return ExactIndex(features, urls, clip_id=header["clip_id"], image_tower=header["image_tower"], device=device)


def _read_urls(path: Path) -> Sequence[Any]:
    if not path.is_file():
        raise InputError(f"no list of addresses {path}; give the .txt, .npy or .hdf5 file that belongs to the index")
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if path.suffix in (".h5", ".hdf5"):
        h5py = _import("h5py", "pip install h5py")
        try:
            return h5py.File(path, "r")["dataset/url"]
        except (OSError, KeyError) as error:
            raise InputError(f"{path} has no table dataset/url ({error})") from error
    return path.read_text(encoding="utf-8").splitlines()


def _import(name: str, remedy: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} is not installed, which such an index needs; {remedy}") from error
