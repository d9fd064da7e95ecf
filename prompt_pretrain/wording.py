"""Small words of messages to people."""

__all__ = ["counted"]


def counted(number: int, noun: str, plural: str = "") -> str:
    """``"1 image"``, ``"2,000 images"``; the plural is the noun with an s, unless another one is given."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
