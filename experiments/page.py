"""One run as one self-contained HTML page: text in, text out."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from experiments.summary import Result, judged_on, percent, si, summary

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5f6b76; --line: #d8dee4;
  --paper: #ffffff; --panel: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1; --line: #3a424b;
  --paper: #14181c; --panel: #1e242a; } }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .6rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
.lead { font-size: 1.1rem; } .note, figcaption, .foot { color: var(--soft); font-size: .92rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .95rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .9rem .35rem 0; text-align: left;
  vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; }
figure { margin: 0; } figcaption { margin: .5rem 0 0; max-width: 46rem; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; box-sizing: border-box; padding: 10px; }
pre { background: var(--panel); border-radius: 6px; padding: .8rem 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .88rem; }
"""


class Picture(NamedTuple):
    """A figure of the page.

    Attributes:
      title: its heading.
      caption: one or two sentences that say how to read it.
      png: the image, base64.
    """

    title: str
    caption: str
    png: str


def headline(result: Result) -> str:
    """One sentence: what was trained on what, how well, and what it saves and cost."""
    accuracy = f"{percent(result['test_accuracy'])} {judged_on([result])} accuracy"
    opening = f"{result['network']} on {result['dataset']}, trained by {result['method']!r}"
    if result["method"] == "dense":
        return (
            f"{opening} at full width, reaches {accuracy} with "
            f"{si(result['params_full'])} parameters and {si(result['macs_full'])} MACs per image."
        )
    macs = 1 - result["macs_compact"] / result["macs_full"]
    params = 1 - result["params_compact"] / result["params_full"]
    train = result["train_macs"] / result["train_macs_dense"]
    return (
        f"{opening}: the compact network reaches {accuracy} with "
        f"{percent(macs, 1)} fewer MACs and {percent(params, 1)} fewer parameters than the full "
        f"one, and its whole training took {percent(train, 1)} of the dense training's MACs."
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The fields of a nested config, in order, with dotted names."""
    fields: list[tuple[str, Any]] = []
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            fields.extend(flatten(value, f"{prefix}{name}."))
        else:
            fields.append((prefix + name, value))
    return fields


def command(result: Result) -> str:
    """The command that trains this again: the one that was given, or every field spelled out."""
    given = result.get("command")
    if given is not None:
        return given if isinstance(given, str) else shlex.join(map(str, given))
    overrides = [
        shlex.quote(f"--config.{name}={value}")
        for name, value in flatten(result["config"])
        if value is not None and name != "workdir"
    ]
    return " \\\n  ".join(["python -m experiments.train", *overrides])


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: bool = False) -> str:
    """An HTML table; with `numbers`, every column but the first is aligned right."""

    def line(cells: Sequence[Any], tag: str) -> str:
        kinds = [' class="n"' if numbers and i else "" for i in range(len(cells))]
        return "".join(
            f"<{tag}{kind}>{escape(str(cell))}</{tag}>"
            for kind, cell in zip(kinds, cells, strict=True)
        )

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>"
    return f'<div class="wide"><table>{head}\n<tbody>\n{body}\n</tbody></table></div>'


def _figure(picture: Picture) -> str:
    return (
        f"<h2>{escape(picture.title)}</h2>\n<figure>"
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{picture.png}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def render(result: Result, pictures: Sequence[Picture], *, notes: Sequence[str] = ()) -> str:
    """The page as HTML; all text is escaped, nothing is loaded from elsewhere.

    Args:
      result: an object with the keys of `result.json`.
      pictures: the figures, in order.
      notes: sentences to stand below the figures' places, such as why one is missing.

    Returns:
      A complete HTML document.
    """
    title = f"{result['method']}: {result['network']} on {result['dataset']}, seed {result['seed']}"
    environment = [("device", result["device"]), *result["versions"].items()]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(headline(result))}</p>',
        "<h2>Result</h2>",
        _table(("", "this run", "full width"), summary(result), numbers=True),
        '<p class="foot">Accuracies are on the whole test split. Full width: the same network with '
        "every channel, and for the training its dense training; a dash where there is no such "
        "figure.</p>",
        *map(_figure, pictures),
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        "<h2>Command</h2>",
        f"<pre>{escape(command(result))}</pre>",
        "<h2>Config</h2>",
        _table(("field", "value"), flatten(result["config"])),
        "<h2>Device and versions</h2>",
        _table(("", ""), environment),
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
