"""A report written once and rendered twice: one self-contained HTML page, and Markdown with its figures beside it."""

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prompt_pretrain.atomic_files import atomic_writer

_CSS = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --tint: #f5f7fa; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 24px 60px; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 6px; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); font-size: 1.3rem; }
p { max-width: 78ch; margin: 8px 0 14px; }
.lead { color: var(--soft); font-size: 1.06rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0 8px; }
.card { padding: 14px 16px; border: 1px solid var(--line); border-radius: 10px; background: var(--tint); }
.card b { display: block; font-size: 1.4rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; margin: 14px 0; }
table { border-collapse: collapse; min-width: 50%; font-variant-numeric: tabular-nums; }
.caption { margin-top: -6px; color: var(--soft); font-size: .92rem; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-size: .88rem; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
th.text, td.text { text-align: left; }
td.text { white-space: normal; min-width: 16ch; }
tr.strong td { font-weight: 650; background: #eef6fb; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 26px;
  margin: 18px 0; align-items: start; }
figure { margin: 0; }
figure img { display: block; max-width: min(100%, 640px); max-height: 600px; }
figcaption { margin-top: 6px; color: var(--soft); font-size: .92rem; max-width: 62ch; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: 12px 14px; border: 1px solid var(--line);
  border-radius: 8px; background: var(--tint);
  font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
footer { margin-top: 48px; padding-top: 14px; border-top: 1px solid var(--line); color: var(--soft); font-size: .9rem; }
@media (max-width: 600px) {
  body { padding: 18px 14px 40px; font-size: 15.5px; }
  h1 { font-size: 1.5rem; }
  th, td { padding-right: 10px; font-size: .88rem; }
  td.text { min-width: 8ch; }
  .cards { grid-template-columns: 1fr 1fr; }
  .card b { font-size: 1.2rem; }
}
"""


@dataclass(frozen=True)
class Text:
    """A paragraph; backquotes mark code."""

    content: str
    lead: bool = False


@dataclass(frozen=True)
class Facts:
    """A row of numbers that one reads first: (value, meaning)."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of cells as they shall be read. ``strong``: rows to point out; ``text_columns``: left-aligned columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    strong: Sequence[int] = ()
    text_columns: Sequence[int] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG file.

    ``name`` becomes its file name beside the Markdown; ``alt`` says what it shows to who cannot see it.
    """

    name: str
    content: bytes
    caption: str
    alt: str

    @property
    def kind(self) -> str:
        """``jpeg`` or ``png``, by the first bytes."""
        return "jpeg" if self.content.startswith(b"\xff\xd8") else "png"

    @property
    def file_name(self) -> str:
        return f"{self.name}.{'jpg' if self.kind == 'jpeg' else 'png'}"


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side where the page is wide enough."""

    items: Sequence[Picture]


@dataclass(frozen=True)
class Commands:
    """Command lines to copy."""

    lines: Sequence[str]


Block = Text | Facts | Table | Pictures | Commands


@dataclass
class Report:
    """Title, and sections of blocks in order of reading; blocks before the first section open the page."""

    title: str
    footer: str = ""
    sections: list[tuple[str, list[Block]]] = field(default_factory=lambda: [("", [])])

    def section(self, title: str) -> None:
        """Start a section; what is added next belongs to it."""
        self.sections.append((title, []))

    def add(self, *blocks: Block) -> None:
        self.sections[-1][1].extend(blocks)

    def html(self) -> str:
        """The page with styles and pictures inside, readable from phone to desktop width, without any script."""
        body = [f"<h1>{html.escape(self.title)}</h1>"]
        for title, blocks in self.sections:
            if title:
                body.append(f"<h2>{html.escape(title)}</h2>")
            body.extend(_html_block(block) for block in blocks)
        if self.footer:
            body.append(f"<footer>{_html_inline(self.footer)}</footer>")
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_CSS}</style>"
        )
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"
        )

    def markdown(self, figure_folder: str = "figures") -> str:
        """GitHub Markdown that refers to the pictures as ``figure_folder/name.png`` (or ``.jpg``)."""
        parts = [f"# {self.title}"]
        for title, blocks in self.sections:
            if title:
                parts.append(f"## {title}")
            parts.extend(_markdown_block(block, figure_folder) for block in blocks)
        if self.footer:
            parts.append(f"---\n\n{self.footer}")
        return "\n\n".join(parts) + "\n"

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``report.html``, ``report.md`` and ``figures/`` into ``folder``; returns the page's path."""
        folder = Path(folder)
        for _, blocks in self.sections:
            for block in blocks:
                for picture in block.items if isinstance(block, Pictures) else ():
                    with atomic_writer(folder / "figures" / picture.file_name) as file:
                        file.write(picture.content)
        for name, content in (("report.md", self.markdown()), ("report.html", self.html())):
            with atomic_writer(folder / name, "w") as file:
                file.write(content)
        return folder / "report.html"


def _html_block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p{' class=lead' if block.lead else ''}>{_html_inline(block.content)}</p>"
    if isinstance(block, Facts):
        cards = (f"<div class=card><b>{html.escape(v)}</b><span>{html.escape(m)}</span></div>" for v, m in block.items)
        return f"<div class=cards>{''.join(cards)}</div>"
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Pictures):
        return f"<div class=figures>{''.join(_html_picture(picture) for picture in block.items)}</div>"
    return f"<pre>{html.escape(chr(10).join(block.lines))}</pre>"


def _html_table(table: Table) -> str:
    head = "".join(
        f"<th{' class=text' if i in table.text_columns else ''}>{html.escape(column)}</th>"
        for i, column in enumerate(table.columns)
    )
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(
            f"<td{' class=text' if i in table.text_columns else ''}>{_html_inline(cell)}</td>"
            for i, cell in enumerate(row)
        )
        rows.append(f"<tr{' class=strong' if index in table.strong else ''}>{cells}</tr>")
    # Below the table and not in it: a caption inside would scroll sideways with a wide table.
    caption = f"<p class=caption>{_html_inline(table.caption)}</p>" if table.caption else ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<div class=scroll><table>{body}</table></div>{caption}"


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.content).decode()
    return (
        f'<figure><img alt="{html.escape(picture.alt)}" src="data:image/{picture.kind};base64,{data}">'
        f"<figcaption>{_html_inline(picture.caption)}</figcaption></figure>"
    )


def _html_inline(text: str) -> str:
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _markdown_block(block: Block, figure_folder: str) -> str:
    if isinstance(block, Text):
        return block.content
    if isinstance(block, Facts):
        return "\n".join(f"- **{value}** {meaning}" for value, meaning in block.items)
    if isinstance(block, Table):
        left = {0, *block.text_columns}
        rule = [":--" if i in left else "--:" for i in range(len(block.columns))]
        rows = [
            [f"**{cell}**" if index in block.strong and cell else cell for cell in row]
            for index, row in enumerate(block.rows)
        ]
        lines = ["| " + " | ".join(_cell(c) for c in row) + " |" for row in [block.columns, rule, *rows]]
        return "\n".join(lines) + (f"\n\n{block.caption}" if block.caption else "")
    if isinstance(block, Pictures):
        return "\n\n".join(
            f"![{picture.alt}]({figure_folder}/{picture.file_name})\n\n{picture.caption}" for picture in block.items
        )
    return "```bash\n" + "\n".join(block.lines) + "\n```"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
