"""The demo in a browser: upload or pick a picture, type words, see what is found.

    pip install -e .[demo]
    python tools/web_demo.py --detector shapeworld_boxsup model_final.pth --examples photos/

Then open the address that it prints. It is reachable from this computer only, unless --host says otherwise.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

if TYPE_CHECKING:
    from demo_parts.session import DemoSession

_TASKS = {"boxes": "detection", "areas": "segmentation"}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="web_demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--detector", nargs=2, metavar=("CONFIG", "WEIGHTS"), help="a YAML file or a name in configs/, a checkpoint")
    add("--segmenter", nargs=2, metavar=("CONFIG", "WEIGHTS"), help="likewise")
    add("--prompt", nargs="+", default=[], metavar="P", help="prompt files and templates to choose from")
    add("--words", default="", help="what to look for at first; default: the classes of the model")
    add("--examples", metavar="DIR", help="folder of pictures to pick from; the first one is shown with its answer")
    add("--confidence-threshold", type=float, default=0.5, metavar="P", help="least score to show at first")
    add("--device", help="cpu, cuda or cuda:1; default: cuda where there is one")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for the whole network (default: 127.0.0.1)")
    add("--port", type=int, default=7860, help="default: 7860")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config settings of all models")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if not (args.detector or args.segmenter):
        raise InputError("no model; give --detector CONFIG WEIGHTS or --segmenter CONFIG WEIGHTS, or both")
    if not 0 < args.port < 65536:
        raise InputError(f"--port {args.port}: it must lie between 1 and 65535")
    if not 0 <= args.confidence_threshold <= 1:
        raise InputError(f"--confidence-threshold {args.confidence_threshold}: it must lie between 0 and 1")
    gradio = import_gradio()
    from demo_parts.session import DemoSession, example_pictures

    examples = example_pictures(args.examples)
    session = DemoSession(options_by_task(args), args.prompt)
    for task in session.tasks:
        session.load(task)  # bad options are found now, and the first answer comes at once
    page = build_page(
        gradio,
        session,
        words=args.words,
        examples=examples,
        least_score=args.confidence_threshold,
    )
    try:
        page.launch(server_name=args.host, server_port=args.port, allowed_paths=[args.examples] if examples else None)
    except OSError as error:
        raise InputError(f"cannot listen at {args.host}:{args.port} ({error}); choose another --port") from error
    return 0


def options_by_task(args: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """Task -> what ``tools/demo.py`` would get for its model."""
    from demo_parts.models import add_model_options, add_vocabulary_options

    parser = argparse.ArgumentParser()
    add_model_options(parser)
    add_vocabulary_options(parser)
    options = {}
    for task, given in (("detection", args.detector), ("segmentation", args.segmenter)):
        if given:
            words = ["--config-file", given[0], "--weights", given[1], "--task", task, "--confidence-threshold", "0.05"]
            words += ["--device", args.device] if args.device else []
            words += ["--custom-vocabulary", args.words] if args.words else []
            options[task] = parser.parse_args(words)
            options[task].opts = args.opts
    return options


def import_gradio() -> Any:
    """Gradio, without its reports to the net.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise InputError("the web demo needs gradio: pip install -c constraints.txt -e .[demo]") from error
    return gradio


def build_page(
    gradio: Any,
    session: "DemoSession",
    *,
    words: str = "",
    examples: Sequence[str] = (),
    least_score: float = 0.5,
) -> Any:
    """The page: questions at the left, answers at the right."""
    from demo_parts.session import OWN_PROMPT, TEMPLATES, table_header

    kinds = [kind for kind, task in _TASKS.items() if task in session.tasks]

    def look(
        image: Any, words: str | None, kind: str, prompt: str | None, threshold: float, background: str | None
    ) -> tuple[Any, Any, str]:
        task = _TASKS[kind]
        try:
            answer = session.look(
                image,
                words or "",  # an empty field may come as None
                task=task,
                prompt=prompt or OWN_PROMPT,
                threshold=threshold,
                background=background or "",
            )
        except InputError as error:
            raise gradio.Error(" ".join(str(error).split())) from error
        return answer.picture, {"headers": table_header(task), "data": answer.rows}, answer.note

    with gradio.Blocks(title="Open-vocabulary recognition") as page:
        gradio.Markdown("# Open-vocabulary recognition\nUpload or pick a picture, type words, and see where they are.")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(
                    examples[0] if examples else None,
                    type="pil",
                    label="Picture",
                    sources=["upload", "clipboard"],
                    height=360,
                )
                if examples:
                    gradio.Examples([[path] for path in examples], inputs=[image], label="Examples")
                text = gradio.Textbox(
                    value=words,
                    label="Words",
                    info="with commas between them; car|automobile are two names of one thing; empty: as at the start",
                    lines=2,
                )
                kind = gradio.Radio(kinds, value=kinds[0], label="Show", visible=len(kinds) > 1)
                button = gradio.Button("Find", variant="primary", elem_id="find")
                with gradio.Accordion("More settings", open=False):
                    threshold = gradio.Slider(0.05, 0.95, value=least_score, step=0.05, label="Least score of boxes")
                    prompt = gradio.Dropdown(
                        [OWN_PROMPT, *session.prompts, *TEMPLATES],
                        value=OWN_PROMPT,
                        label="Prompt",
                        info="what stands around each word; a template of your own has {} where the word goes",
                        allow_custom_value=True,
                    )
                    background = gradio.Textbox(
                        label="Background words", info="what to take for nothing, such as wall, floor"
                    )
            with gradio.Column():
                overlay = gradio.Image(label="Found", interactive=False, height=480)
                note = gradio.Markdown(elem_id="note")
                table = gradio.Dataframe(label="Table", headers=table_header(_TASKS[kinds[0]]), interactive=False)
        questions, answers = [image, text, kind, prompt, threshold, background], [overlay, table, note]
        if examples:
            page.load(look, questions, answers)  # so that the first thing to see is what it does
        button.click(look, questions, answers)
        text.submit(look, questions, answers)
    return page


if __name__ == "__main__":
    sys.exit(run_command(main))
