"""ShapeWorld: how fast pictures of 64 pixels are drawn on two cores.

    python tools/benchmarks/shapeworld.py [--quick] [--json FILE] [--device cpu|cuda]

Drawing runs on the CPU whatever the device. Two processes draw different classes at the same time.
"""

import multiprocessing
import sys
import time

from _records import Record, parse_arguments, report

from prompt_pretrain.shapeworld.classes import things
from prompt_pretrain.shapeworld.images import render_image

PROCESSES = 2
SIZE = 64


def main() -> int:
    options = parse_arguments(__doc__)
    number = 600 if options.quick else 4000
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(draw, [(first, 20) for first in range(PROCESSES)])  # start and warm up
        start = time.perf_counter()
        pool.map(draw, [(first, number) for first in range(PROCESSES)], chunksize=1)
        seconds = time.perf_counter() - start
    report([Record("shapeworld/images_per_second", PROCESSES * number / seconds, "images/s")], options.json)
    return 0


def draw(task: tuple[int, int]) -> None:
    """Draw ``task[1]`` pictures, one of every second class from class ``task[0]``."""
    first, number = task
    classes = things("base")[first::PROCESSES]
    for index in range(number):
        render_image(classes[index % len(classes)], index // len(classes), size=SIZE)


if __name__ == "__main__":
    sys.exit(main())
