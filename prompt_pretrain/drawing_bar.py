"""A progress bar for data that are drawn in several parts, one after the other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def drawing_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function to call with what is drawn, the images done and their total; silent where no terminal is."""
    from tqdm import tqdm

    with tqdm(unit=" images", leave=False, disable=None) as bar:

        def drawn(what: str, done: int, total: int) -> None:
            if done < bar.n:
                bar.reset(total)
            bar.total = total
            bar.set_description(what, refresh=False)
            bar.update(done - bar.n)

        yield drawn
