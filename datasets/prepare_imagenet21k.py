"""Index ImageNet-21K in its tar archives and join its classes with those of LVIS.

python datasets/prepare_imagenet21k.py tar-index    # imagenet/metadata-22k: which archives, where their images are
python datasets/prepare_imagenet21k.py image-info   # imagenet/annotations/imagenet-22k_image_info.json
python datasets/prepare_imagenet21k.py merge-lvis   # both that file and LVIS with the 22,047 joint classes
"""

import argparse
import errno
import os
import sys
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from preparation.annotation_files import about, add_root, beside, parse, read_annotations, write_annotations
from preparation.categories import imagenet21k_rows, lvis_and_imagenet21k_categories
from tqdm import tqdm

from prompt_pretrain.atomic_files import write_npy
from prompt_pretrain.classification.tar_archives import BLOCK
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

if TYPE_CHECKING:
    from detection.data.tar_dataset import DiskTarDataset

Content = dict[str, Any]

_JPEG = (".jpeg", ".jpg")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_imagenet21k", description=(__doc__ or "").split("\n")[0])
    steps = parser.add_subparsers(required=True, metavar="STEP")
    workers = min(16, os.cpu_count() or 1)

    step = steps.add_parser("tar-index", help="find the images in the archives")
    step.add_argument("--archives", help="folder with WNID.tar (default: ROOT/imagenet/ImageNet-21K)")
    step.add_argument("--workers", type=int, default=workers, help=f"threads (default: {workers})")
    step.set_defaults(run=run_tar_index)

    step = steps.add_parser("image-info", help="list the images of the index with their label and size")
    step.add_argument("--output", help="default: ROOT/imagenet/annotations/imagenet-22k_image_info.json")
    step.add_argument("--workers", type=int, default=workers, help=f"processes that decode (default: {workers})")
    step.set_defaults(run=run_image_info)

    step = steps.add_parser("merge-lvis", help="replace the classes of both sets by their union")
    step.add_argument("--lvis", help="default: ROOT/lvis/lvis_v1_train.json")
    step.add_argument("--imagenet", help="default: ROOT/imagenet/annotations/imagenet-22k_image_info.json")
    step.set_defaults(run=run_merge_lvis)

    for step in steps.choices.values():
        add_root(step)
        if step is not steps.choices["merge-lvis"]:
            step.add_argument("--index", help="folder of the index (default: ROOT/imagenet/metadata-22k)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return parse(build_parser(), argv)


def run_tar_index(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise InputError(f"--workers must be positive, got {args.workers}")
    folder = Path(args.archives or Path(args.root, "imagenet/ImageNet-21K"))
    archives = sorted(folder.glob("*.tar"))
    if not archives:
        raise InputError(f"no archives *.tar in {folder}; give their folder by --archives")
    index = _index_folder(args)
    total = 0
    with ThreadPoolExecutor(args.workers) as pool:
        found = tqdm(
            pool.map(find_images, archives), total=len(archives), desc="archives", unit="archive", disable=None
        )
        for archive, (names, offsets) in zip(archives, found, strict=True):
            write_npy(index / "tarindex_npy" / f"{archive.stem}_names.npy", names)
            write_npy(index / "tarindex_npy" / f"{archive.stem}_offsets.npy", offsets)
            total += len(names)
    write_npy(index / "tar_files.npy", np.array([str(archive) for archive in archives]))
    print(f"wrote {index}: {len(archives):,} archives with {total:,} images")


def run_image_info(args: argparse.Namespace) -> None:
    if args.workers < 0:
        raise InputError(f"--workers must not be negative, got {args.workers}")
    from detection.data.tar_dataset import DiskTarDataset

    index = _index_folder(args)
    dataset = DiskTarDataset(index / "tar_files.npy", index / "tarindex_npy")
    content = list_images(dataset, args.workers)
    print(f"{index}: {len(dataset) - len(content['images']):,} of {len(dataset):,} images are unreadable and left out")
    output = args.output or Path(args.root, "imagenet/annotations/imagenet-22k_image_info.json")
    write_annotations(output, content, [])


def run_merge_lvis(args: argparse.Namespace) -> None:
    lvis = Path(args.lvis or Path(args.root, "lvis/lvis_v1_train.json"))
    imagenet = Path(args.imagenet or Path(args.root, "imagenet/annotations/imagenet-22k_image_info.json"))
    content = read_annotations(imagenet)
    with about(imagenet):
        merged = merge_labels(content)
    write_annotations(beside(imagenet, "_lvis-22k"), merged, [imagenet])
    content = {**read_annotations(lvis), "categories": lvis_and_imagenet21k_categories()}
    write_annotations(beside(lvis, "_lvis-22k"), content, [lvis])


def find_images(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where the JPEG members of an archive are.

    Returns:
        (n,) names without folders; (n + 1,) int64 numbers of 512-byte blocks: each one's first header, and the first
        block behind the last member.
    Raises:
        InputError: it is no archive, or cut short.
    """
    names, offsets = [], []
    end = 0
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                end = -(-(member.offset_data + (member.size if member.isreg() else 0)) // BLOCK)
                name = PurePosixPath(member.name).name
                if member.isreg() and name.lower().endswith(_JPEG) and not name.startswith("."):
                    names.append(name)
                    offsets.append(member.offset // BLOCK)
        with open(archive, "rb") as file:
            file.seek(end * BLOCK)
            behind = file.read(BLOCK)
        if behind.strip(b"\0") or len(behind) not in (0, BLOCK):
            raise tarfile.ReadError(f"no end mark at block {end}")
    except (tarfile.TarError, ValueError, OverflowError, OSError) as error:
        # A size that is negative or beyond any disk is found only when the file is to be read there.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise InputError(f"{archive} is damaged, cut short or no plain tar archive ({error}); copy it again") from error
    return np.array(names, dtype=np.str_), np.array([*offsets, end], dtype=np.int64)


def list_images(dataset: "DiskTarDataset", workers: int) -> Content:
    """The images of the archives with one label each, in LVIS' format; unreadable ones are left out.

    Raises:
        InputError: an archive is named after no class of ImageNet-21K.
    """
    from torch.utils.data import DataLoader

    categories = []
    known = imagenet21k_rows()
    for number, archive in enumerate(dataset.archives, 1):
        row = known.get(Path(archive).stem)
        if row is None:
            raise InputError(f"{archive} is named after no class of ImageNet-21K; expected names such as n01440764.tar")
        synonyms = row["lemmas"].split(", ")
        categories.append({"id": number, "synset": row["synset"], "name": row["name"], "synonyms": synonyms})
    images = []
    labels = np.repeat(np.arange(len(categories)), dataset.dataset_lens).tolist()
    sizes = DataLoader(_Sizes(dataset), batch_size=64, num_workers=workers, collate_fn=list)
    progress = tqdm(total=len(dataset), desc="image sizes", unit="image", disable=None)
    for batch in sizes:
        for index, size in batch:
            if size is not None:
                image = {"id": index + 1, "pos_category_ids": [labels[index] + 1], "tar_index": index}
                images.append({**image, "width": size[0], "height": size[1]})
        progress.update(len(batch))
    progress.close()
    return {"categories": categories, "images": images, "annotations": []}


def merge_labels(content: Content) -> Content:
    """The same with the 22,047 joint classes, matched by synset; images left without labels are dropped.

    Raises:
        InputError: a category has no synset, or one that is not in ImageNet-21K; a label is of no category.
    """
    joint = {row["synset"]: row["lvis22k_id"] for row in imagenet21k_rows().values()}
    number_of = {}
    for row in content["categories"]:
        if row.get("synset") not in joint:
            raise InputError(f"category {row['id']} has the synset {row.get('synset')!r}, which ImageNet-21K has not")
        number_of[row["id"]] = joint[row["synset"]]
    images = []
    for image in content["images"]:
        labels = image.get("pos_category_ids", [])
        unknown = [number for number in labels if number not in number_of]
        if unknown:
            raise InputError(f"image {image['id']} has the label {unknown[0]}, which the file does not list")
        if labels:
            images.append({**image, "pos_category_ids": sorted({number_of[number] for number in labels})})
    return {**content, "categories": lvis_and_imagenet21k_categories(), "images": images}


class _Sizes:
    """(index, (width, height) or None for an unreadable image) of each image."""

    def __init__(self, dataset: "DiskTarDataset") -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[int, tuple[int, int] | None]:
        from prompt_pretrain.classification.decoding import ImageError

        try:
            return index, self._dataset.read_image(index).size
        except ImageError:
            return index, None


def _index_folder(args: argparse.Namespace) -> Path:
    return Path(args.index or Path(args.root, "imagenet/metadata-22k"))


if __name__ == "__main__":
    sys.exit(run_command(main))
