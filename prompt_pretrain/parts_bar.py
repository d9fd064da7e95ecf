"""A progress bar for work in several parts, one after the other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def parts_bar(unit: str = "images") -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function to call with the part, what is done of it and its total; silent where no terminal is."""
    from tqdm import tqdm

    with tqdm(unit=f" {unit}", leave=False, disable=None) as bar:

        def show(part: str, done: int, total: int) -> None:
            if done < bar.n:
                bar.reset(total)
            bar.total = total
            bar.set_description(part, refresh=False)
            bar.update(done - bar.n)

        yield show
