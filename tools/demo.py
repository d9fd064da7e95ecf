r"""Show what a detector or segmenter finds in your pictures, for any words.

    python tools/demo.py --config-file shapeworld_boxsup --weights model_final.pth --input photos/ 'more/*.jpg' \
        --output out/ --custom-vocabulary "red car,traffic cone"

Detection draws boxes, masks and names, segmentation colours areas and adds a legend. The folder of --output gets the
pictures under their own names, predictions.json in COCO's format, and for segmentation labels/NAME.png, whose values
are positions in the vocabulary. Without --output a window opens. Settings follow behind --opts as KEY VALUE pairs.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_parts.models import add_model_options, add_vocabulary_options, load_model

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.wording import counted

if TYPE_CHECKING:
    import numpy as np

    from prompt_pretrain.classification.decoding import ImageError
    from prompt_pretrain.image_inputs import ImageInput

_log = logging.getLogger("demo")
_NAMES_SHOWN = 6
_CAMERA_RATE = 10.0  # frames per second of what a camera or the screen gives; models are slower than they are


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_argument_group("input and output")
    add = group.add_argument
    add("--input", nargs="+", default=[], metavar="PATH", help="images, folders, patterns ('*.jpg') and videos")
    add("--video-input", metavar="FILE", help="a video")
    add("--webcam", nargs="?", const="0", metavar="N", help="a camera, by its number (default 0), or 'screen'")
    add("--output", metavar="DIR", help="folder for the results, or one picture; default: a window")
    add("--max-frames", type=int, metavar="N", help="stop after this many frames of each video, camera or screen")
    add_model_options(parser)
    add_vocabulary_options(parser)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config settings")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    # Loads torch and OpenCV: after the options are known to be right.
    from demo_parts.inputs import camera_frames, find_sources, screen_frames
    from demo_parts.outputs import check_output

    if not (args.input or args.video_input or args.webcam):
        raise InputError("nothing to look at; give --input, --video-input or --webcam")
    if args.webcam and not (args.webcam.isdigit() or args.webcam == "screen"):
        raise InputError(f"--webcam {args.webcam!r}: expected a camera's number or 'screen'")
    if args.max_frames is not None and args.max_frames < 1:
        raise InputError(f"--max-frames {args.max_frames}: it must be at least 1")
    sources = find_sources(args.input, args.video_input)
    check_output(args.output, len(sources.images) + 2 * len(sources.videos) + 2 * bool(args.webcam))
    task, model = load_model(args)
    demo = Demo(task, model, args)
    try:
        demo.look_at_images(sources.images)
        for video in sources.videos:
            demo.look_at_video(video)
        if args.webcam:
            frames = screen_frames() if args.webcam == "screen" else camera_frames(int(args.webcam))
            demo.look_live(frames, Path("screen" if args.webcam == "screen" else f"camera{args.webcam}"))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(demo.keep()) from None
    return demo.finish()


class Demo:
    """One run: a model, its options, and what has been seen so far."""

    def __init__(self, task: str, model: Any, args: argparse.Namespace) -> None:
        from demo_parts.outputs import CocoJson, Folder, Window, is_picture

        self.task = task
        self.model = model
        self.args = args
        output = Path(args.output) if args.output else None
        self.one_picture = output if output is not None and is_picture(output) else None
        self.files = Folder(output) if output is not None and self.one_picture is None else None
        self.window = Window() if output is None else None
        self.json = CocoJson()
        self.seen = self.bad = self.found = 0
        self.closed = False

    def look_at_images(self, paths: Sequence[Path]) -> None:
        from demo_parts.outputs import save_picture
        from tqdm import tqdm

        if not paths:
            return
        with tqdm(total=len(paths), unit=" images", leave=False, disable=None, dynamic_ncols=True) as bar:
            for result, pixels in self._results(_read(paths, bar)):
                picture = self._draw(result, pixels)
                if self.window is not None:
                    self.closed = not self.window.show(picture, wait=True)
                    if self.closed:
                        return
                    continue
                path = self.one_picture or self._files.picture(Path(result.source))
                save_picture(path, picture)
                if self.one_picture is None:
                    self._record(result)
                    if self.task == "segmentation":
                        result.save_label_map(self._files.label_map(path))
                tqdm.write(f"{result.source}: {self._summary(result)}")

    def look_at_video(self, path: Path) -> None:
        from demo_parts.inputs import frame_rate

        from prompt_pretrain.image_inputs import open_inputs

        if not self.closed:
            self._look_at_frames(open_inputs(path).images, path, frame_rate(path), self.args.batch_size)

    def look_live(self, frames: Iterator["ImageInput"], source: Path) -> None:
        if not self.closed:
            self._look_at_frames(frames, source, _CAMERA_RATE, batch_size=1, live=True)

    def _look_at_frames(
        self,
        frames: Iterator["ImageInput | ImageError"],
        source: Path,
        rate: float,
        batch_size: int,
        live: bool = False,
    ) -> None:
        from contextlib import nullcontext
        from itertools import islice

        from demo_parts.outputs import video_writer
        from tqdm import tqdm

        frames = islice(frames, self.args.max_frames)
        began, count, stopped = time.monotonic(), 0, False
        into_file = nullcontext() if self.files is None else video_writer(self.files, source, rate)
        with into_file as video, tqdm(unit=" frames", leave=False, disable=None, dynamic_ncols=True) as bar:
            try:
                for result, pixels in self._results(frames, batch_size):
                    picture = self._draw(result, pixels)
                    count += 1
                    bar.update()
                    if self.window is not None:
                        self.closed = not self.window.show(picture, wait=False)
                        if self.closed:
                            break
                    elif video is not None:
                        video.write(picture)
                        self._record(result)
            except KeyboardInterrupt:
                if not live:  # what is left of a video would pass for all of it
                    raise
                stopped = True
        if video is not None and video.path is not None:
            print(f"{source}: {counted(count, 'frame')} in {time.monotonic() - began:.1f} s -> {video.path}")
        if stopped:
            raise KeyboardInterrupt

    def finish(self) -> int:
        """Write what is about the whole run, and say how it went. 2 if no input could be used."""
        if self.bad:
            _log.warning("%d of %s could not be used, see above", self.bad, counted(self.seen, "input"))
        if self.bad == self.seen and not self.closed:
            raise InputError("no input could be used, see above")
        if not self.found and not self.closed and self.task == "detection":
            least = self.args.confidence_threshold
            print(f"nothing scored {least:g} or more; lower --confidence-threshold, or look for other words")
        if self.files is not None:
            self.json.save(self.files.folder / "predictions.json")
            print(f"results in {self.files.folder}: pictures and predictions.json")
        elif self.one_picture is not None:
            print(f"written to {self.one_picture}")
        return 0

    def keep(self) -> str:
        """Write what is about the run so far; says what there is, for people who have stopped it."""
        if self.files is None or not len(self.json):
            return "nothing is kept, the same command starts anew"
        path = self.files.folder / "predictions.json"
        self.json.save(path)
        return f"{path} and the pictures beside it show what was seen so far, the same command starts anew"

    @property
    def _files(self) -> Any:
        assert self.files is not None
        return self.files

    def _results(
        self, images: Iterator["ImageInput | ImageError"], batch_size: int | None = None
    ) -> Iterator[tuple[Any, "np.ndarray"]]:
        """Results with their pixels, which are kept for as long as a batch takes."""
        waiting: dict[int, np.ndarray] = {}
        before = self.seen

        def remembered() -> Iterator["ImageInput | ImageError"]:
            for index, image in enumerate(images):
                self.seen += 1
                if hasattr(image, "pixels"):
                    waiting[index] = image.pixels
                yield image

        done = 0
        for result in self.model.results(remembered(), batch_size=batch_size or self.args.batch_size, skip_bad=True):
            done += 1
            if self.task == "detection":
                result = result.above(self.args.confidence_threshold)
            self.found += len(result)
            for index in [index for index in waiting if index < result.index]:
                del waiting[index]  # left out by the model
            yield result, waiting.pop(result.index)
        self.bad += self.seen - before - done

    def _draw(self, result: Any, pixels: "np.ndarray") -> "np.ndarray":
        from demo_parts.outputs import draw

        return draw(self.task, result, pixels)

    def _record(self, result: Any) -> None:
        self.json.add(result, result.source)

    def _summary(self, result: Any) -> str:
        names = list(dict.fromkeys(result.class_names))
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        return f"{len(result)} found: {', '.join(names[:_NAMES_SHOWN])}{more}" if names else "nothing found"


def _read(paths: Sequence[Path], bar: Any) -> Iterator["ImageInput | ImageError"]:
    from prompt_pretrain.image_inputs import open_inputs

    for path in paths:
        yield from open_inputs([os.fspath(path)]).images
        bar.update()


if __name__ == "__main__":
    sys.exit(run_command(main))
