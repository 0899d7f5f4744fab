"""Pages of one HTML file that loads nothing: stylesheet, scripts, pictures and charts are inside.

Text is escaped by Jinja, and a content security policy keeps a page from loading anything, whatever
a class or a file is named.
"""

import base64
import functools
import json
from pathlib import Path
from typing import Any

import plotly
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from segret_jax import __version__
from segret_jax.errors import InputError
from segret_jax.files import atomic_write, disk_errors_as_input_errors

FOLDER = Path(__file__).parent
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
GENERATOR = "segret_jax"
MARK = f'<meta name="generator" content="{GENERATOR} '
HEAD = 2000  # bytes in which the mark of an own page stands


def render(template: str, **values: Any) -> str:
    """Return the page that a template of `templates/` makes of `values`."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"json": embedded_json}
    environment.globals |= {"inlined": _inlined, "generator": f"{GENERATOR} {__version__}"}
    return environment


def _inlined(name: str) -> Markup:
    """Return a stylesheet or script as part of a page."""
    file = PLOTLY if name == PLOTLY.name else FOLDER / name
    return Markup(file.read_text(encoding="utf-8"))


def embedded_json(value: Any) -> Markup:
    """Return JSON to stand in a <script> element, which no text in it can end."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def chart_text(text: str) -> str:
    """Return text as Plotly shows it: it reads HTML in labels."""
    return str(escape(text))


def data_uri(content: bytes, kind: str) -> str:
    """Return a picture as an address that contains it; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def check_replaceable(file: Path) -> None:
    """Raise InputError if `file` is there and no page of this package."""
    try:
        with file.open("rb") as stream:
            is_own = MARK.encode() in stream.read(HEAD)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{file} cannot be replaced ({error.strerror}): give --out") from error
    if not is_own:
        raise InputError(
            f"{file} exists and is no page of segret: give another --out, or delete it"
        )


def write(file: Path, page: str) -> None:
    """Write a page atomically; raise InputError if the disk refuses it."""
    with disk_errors_as_input_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, page)
