"""Pages: what they hold is escaped, they load nothing, and they replace no file of the user."""

import json
import re
from pathlib import Path

import pytest

from segret_jax.errors import InputError
from segret_jax.pages import page

HOSTILE = "</script><script>alert(1)</script> & \u2028"


def test_embedded_json_cannot_end_its_script_and_is_read_back():
    text = page.embedded_json({"name": HOSTILE})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"name": HOSTILE}


def test_values_that_json_does_not_have_are_errors():
    with pytest.raises(ValueError, match="not JSON compliant"):
        page.embedded_json([float("nan")])


def test_text_is_shown_and_not_read_as_html():
    assert page.chart_text("<b>&") == "&lt;b&gt;&amp;"


# What the page of `segret serve` may load: a path on its own server.
OWN = re.compile(
    r'(<link rel="\w+" href|<script type="module" src|<img src)='
    r'"(/static/[\w.]+"|/samples/{{|data:,")'
)


def test_what_pages_are_made_of_names_no_other_host():
    files = [file for file in page.FOLDER.rglob("*") if file.suffix in (".html", ".css", ".js")]
    assert len(files) > 6
    for file in files:
        text = file.read_text()
        if file.name.startswith("serve"):  # from the server's own files, not a page in one file
            text = OWN.sub("", text)
        assert not re.search(r"https?:|@import|<link|src=\"[^{]", text), file


def test_a_page_of_ours_is_replaced_and_no_other_file(tmp_path: Path):
    ours, theirs = tmp_path / "ours.html", tmp_path / "theirs.html"
    page.write(ours, f'<!DOCTYPE html>\n{page.MARK}1.0">')
    page.check_replaceable(ours)
    page.check_replaceable(tmp_path / "new.html")
    theirs.write_text("<html>mine</html>")
    with pytest.raises(InputError, match=r"theirs.html exists and is no page of segret: give ano"):
        page.check_replaceable(theirs)
    with pytest.raises(InputError, match=r"cannot be replaced \(Is a directory\)"):
        page.check_replaceable(tmp_path)


def test_a_disk_that_refuses_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*page.html"):
        page.write(tmp_path / "file" / "page.html", "")
