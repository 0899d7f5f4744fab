"""The HTTP interface: what is answered and refused; no file can be read through it."""

import base64
import gzip
import io
import json
import re
import threading
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segret_jax.data.class_table import load_class_table
from segret_jax.data.pipeline import SPLIT_SEEDS
from segret_jax.serve import sample_images
from tests.serve import stand_in
from tests.serve.conftest import picture


def test_a_photograph_gets_the_files_of_predict(client):
    served = client()
    found = served.post("/predict", content=picture())
    assert found.status_code == 200
    assert {one["name"]: one["share"] for one in found.json()["classes"]} == {
        "sky": 0.5, "road": 0.4375, "car": 0.0625,
    }  # fmt: skip
    assert "model;dur=" in found.headers["server-timing"]
    label = served.post("/predict?format=label", content=picture())
    assert label.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(label.content)) as image:
        assert image.mode == "P"
        expected = stand_in.segment(np.zeros((40, 60, 3), np.uint8)).label_map
        np.testing.assert_array_equal(np.asarray(image), expected)
    regions = served.post("/predict?format=polygons", content=picture())
    assert regions.json()["type"] == "FeatureCollection"
    overlay = served.post("/predict?format=overlay&opacity=1&names=true", content=picture())
    with Image.open(io.BytesIO(overlay.content)) as image:
        assert image.convert("RGB").getpixel((30, 5)) == (128, 128, 128)  # the color of sky


@pytest.mark.parametrize(
    ("dataset", "samples", "origin"),
    [
        ("camvid", ["street_1.jpg", "street_2.jpg", "street_3.jpg"], "of CamVid (Brostow"),
        (
            "synthetic",
            ["scene_000000.jpg", "scene_000002.jpg", "scene_000003.jpg"],
            "The samples are generated scenes.",
        ),
    ],
)
def test_the_samples_are_of_the_kind_that_the_model_knows(client, dataset, samples, origin):
    classes = load_class_table(dataset)
    served = client(served=stand_in.Served(name="a", classes=classes, segment=stand_in.segment))
    text = served.get("/").text
    assert re.findall(r'data-sample="/samples/([^"]+)"', text) == samples
    assert origin in text
    for name in samples:
        found = served.get(f"/samples/{name}")
        assert found.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(found.content)) as image:
            assert image.width > image.height > 200


def test_generated_samples_are_of_no_split():
    assert sample_images.SEED not in SPLIT_SEEDS.values()


def test_several_formats_come_as_one_object(client):
    found = client().post("/predict?format=json,label,raw", content=picture()).json()
    assert [*found] == ["json", "label", "raw"]
    assert found["json"]["width"] == 60
    raw = gzip.decompress(base64.b64decode(found["raw"].partition(",")[2]))
    ids, confidence = np.frombuffer(raw, np.uint8).reshape(2, 40, 60)
    assert (ids[0, 0], ids[-1, -1], confidence[0, 0]) == (0, 3, 191)


def test_photographs_are_turned_upright(client):
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(content, "JPEG", exif=exif)
    found = client().post("/predict", content=content.getvalue()).json()
    assert (found["width"], found["height"]) == (40, 60)


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/predict?format=jpeg", 400, "unknown format 'jpeg'"),
        ("/predict?opacity=nan", 400, "opacity is 'nan': give a number from 0 to 1"),
        ("/predict?names=1", 400, "names is '1': give true or false"),
        ("/predict?file=/etc/passwd", 400, "unknown parameter 'file'"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(client, address, status, words):
    found = client().post(address, content=picture())
    assert (found.status_code, words in found.json()["error"]) == (status, True)


def bomb(side: int) -> bytes:
    """Return a small PNG whose header tells many pixels."""
    content = bytearray(picture(1, 1))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 422, "the body is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 422, "cannot be read as an image"),
        (picture()[:60], 422, "cannot be read"),
        (b"x" * 5001, 413, "5,001 bytes; the limit is 5,000"),
        (picture(41, 60), 413, "60 x 41 pixels; the limit is 2,400"),
        (bomb(30000), 413, "89,000,000 pixels"),
    ],
    ids=["empty", "eps", "truncated", "bytes", "pixels", "bomb"],
)
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_limits_have_the_right_answers(client, body, status, words):
    found = client(max_bytes=5000, max_pixels=2400).post("/predict", content=body)
    assert found.status_code == status
    assert words in found.json()["error"]


def test_a_body_without_a_length_is_stopped_at_the_limit(client):
    found = client(max_bytes=5000).post("/predict", content=(b"x" * 1000 for _ in range(20)))
    assert found.status_code == 413
    assert "more than 5,000 bytes" in found.json()["error"]


def test_a_form_is_refused_with_the_remedy(client):
    found = client().post("/predict", files={"file": picture()})
    assert found.status_code == 415
    assert "--data-binary" in found.json()["error"]


def test_the_share_of_a_client_and_the_queue_are_bounded(client):
    gate = threading.Event()

    def segment(image: np.ndarray) -> Any:
        gate.wait(30)
        return stand_in.segment(image)

    served = stand_in.Served(name="slow", classes=stand_in.TABLE, segment=segment)
    for limits, status in (({"per_client": 2}, 429), ({"queue": 2}, 503)):
        gate.clear()
        one = client(served=served, **limits)
        waiting = [
            threading.Thread(target=one.post, args=("/predict",), kwargs={"content": picture()})
            for _ in range(2)
        ]
        for thread in waiting:
            thread.start()
        until(lambda one=one: one.get("/status").json()["waiting"] == 2)
        refused = one.post("/predict", content=picture())
        gate.set()
        for thread in waiting:
            thread.join()
        assert refused.status_code == status
        assert int(refused.headers["retry-after"]) > 0
        assert one.post("/predict", content=picture()).status_code == 200  # all have left
        assert one.get("/status").json()["waiting"] == 0


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_only_own_pages_and_names_are_served(client):
    served = client(hosts={"127.0.0.1", "localhost"})
    for host, status in (("localhost:8000", 200), ("evil.example", 421), ("", 421), ("[", 421)):
        assert served.get("/", headers={"host": host}).status_code == status
    for origin, status in (("http://localhost", 200), ("http://evil.example", 403), ("null", 403)):
        headers = {"host": "localhost", "origin": origin}
        assert served.post("/predict", content=picture(), headers=headers).status_code == status


@pytest.mark.parametrize("path", ["/", "/docs", "/status", "/static/serve.js", "/nothing"])
def test_every_answer_has_the_headers_of_security(client, path):
    headers = client().get(path).headers
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/..%2f..%2fetc%2fpasswd", "/static//etc/passwd",
        "/samples/..%5c..%5capp.py", "/%2e%2e/etc/passwd", "/static/page.py", "/samples/",
        "/static/serve.js%00", "//etc/passwd", "/predict",
    ],
)  # fmt: skip
def test_no_file_of_the_machine_can_be_read(client, path):
    found = client().get(path)
    assert found.status_code in (404, 405)
    assert "see /docs" in found.json()["error"]


def test_the_interface_is_described_without_another_server(client):
    served = client()
    schema = served.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    documented = {*schema["paths"]["/predict"]["post"]["responses"]}
    assert {"200", "400", "413", "422", "429", "503"} <= documented
    text = served.get("/docs").text
    assert all(f">{status}<" in text for status in documented)
    assert "https://" not in text
    assert json.dumps(served.get("/status").json()["classes"][0]) == json.dumps(
        {"id": 0, "name": "sky", "color": "#808080"}
    )
