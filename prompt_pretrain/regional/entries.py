"""The published text form of a class with its description: ``<name>_which_is_<description>``."""

SEPARATOR = "_which_is_"


def make_entry(name: str, description: str) -> str:
    """``<name>_which_is_<description>`` with underscores for blanks; the name alone where there is no description."""
    words = [*name.split()]
    entry = "_".join(words)
    described = "_".join(description.split())
    return f"{entry}{SEPARATOR}{described}" if described else entry


def split_entry(entry: str) -> tuple[str, str]:
    """Name and description ("" without one) of an entry, blanks for underscores in neither."""
    name, _, description = entry.replace(" ", "_").partition(SEPARATOR)
    return name, description
