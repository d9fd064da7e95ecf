"""Which files of a class folder are images, judged by name alone."""

# Anything else is tried as an image: published sets hold images with odd or missing extensions, and a file that turns
# out to be none is then reported instead of silently left out.
_NO_IMAGES = frozenset(
    ".csv .db .gz .h5 .htm .html .ini .json .jsonl .mat .md .npy .npz .pdf .pkl .pt .pth .py .tar .tgz .tsv .txt .url "
    ".xml .yaml .yml .zip".split()
)


def is_image_name(name: str) -> bool:
    """Whether a file may be an image: not hidden, and without the extension of another kind of file."""
    if name.startswith("."):
        return False
    stem, dot, extension = name.rpartition(".")
    return not (stem and dot + extension.lower() in _NO_IMAGES)
