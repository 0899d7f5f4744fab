"""A server in its own process under hostile use, many clients, and Ctrl-C."""

import http.client
import json
import random
import signal
import socket
import threading
import time
import urllib.request
import zlib

import psutil
import pytest

from segret_jax.serve import sample_images
from tests.serve.command import serving
from tests.serve.conftest import Running, picture
from tests.serve.test_app import bomb, until

GROWTH = 50e6  # bytes


def post(port: int, body: bytes, *, source: str = "127.0.0.1") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=60, source_address=(source, 0)
    )
    try:
        connection.request("POST", "/predict", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def head(body: bytes) -> bytes:
    return b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)


def send_raw(port: int, content: bytes, *, ends: bool = False) -> bytes:
    """Send bytes that need not be HTTP; return the first 12 of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(content)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            return connection.recv(12)
        except ConnectionError:  # it was closed in the middle
            return b""


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


# A comment of a PNG: 30 kB that would be 30 MB.
LONG_TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(30_000_000)))


def hostile(port: int, number: int) -> None:
    """Send one of many kinds of what no server wants; the answer must be the right one."""
    rng = random.Random(number)
    good = picture(300, 400, rng.choice(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]))
    flipped = bytearray(good)
    for _ in range(20):
        flipped[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
    start = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    huge, waits = b"Content-Length: 99999999999\r\n", b"Expect: 100-continue\r\n\r\n"
    kinds = [
        lambda: post(port, good[: rng.randrange(1, len(good))])[0] in (200, 422),
        lambda: post(port, bytes(flipped))[0] in (200, 413, 422),
        lambda: post(port, bomb(rng.choice([30_000, 12_000, 2**31 - 1])))[0] in (413, 422),
        lambda: post(port, picture(1, 1)[:33] + LONG_TEXT + picture(1, 1)[33:])[0] in (200, 422),
        lambda: post(port, b"%!PS-Adobe-3.0 EPSF-3.0\n" + rng.randbytes(1000))[0] == 422,
        lambda: post(port, b"<svg xmlns='http://www.w3.org/2000/svg'/>")[0] == 422,
        lambda: post(port, rng.randbytes(rng.randrange(1, 100_000)))[0] == 422,
        lambda: post(port, b"")[0] == 422,
        lambda: post(port, bytes(1_500_001))[0] == 413,
        lambda: send_raw(port, start + b"X: " + b"a" * 1_000_000) in (b"HTTP/1.1 400", b""),
        lambda: send_raw(port, start + huge + waits) == b"HTTP/1.1 413",
        lambda: send_raw(port, start + b"Content-Length: 1000\r\n\r\nabc", ends=True) == b"",
        lambda: send_raw(port, rng.randbytes(200) + b"\r\n\r\n") == b"HTTP/1.1 400",
        lambda: send_raw(port, start + b"Content-Length: -5\r\n\r\n") == b"HTTP/1.1 400",
    ]
    assert kinds[number % len(kinds)](), f"kind {number % len(kinds)}, number {number}"


@pytest.mark.parametrize(
    "count", [70, pytest.param(1000, marks=pytest.mark.slow)], ids=["70", "1000"]
)
def test_hostile_uploads_neither_end_it_nor_grow_it(running, count: int):
    server: Running = running("max_bytes=1500000")
    process = psutil.Process(server.process.pid)
    for number in range(28):  # every kind twice: imports and buffers that stay
        hostile(server.port, number)
    before = process.memory_info().rss
    for number in range(28, 28 + count):
        hostile(server.port, number)
    grown = process.memory_info().rss - before
    print(f"{count} hostile uploads: {grown / 1e6:.1f} MB more than {before / 1e6:.0f} MB")
    assert grown < GROWTH
    assert post(server.port, picture())[0] == 200
    assert server.end() == ""  # no traceback


def test_64_clients_are_served_in_the_order_in_which_they_come(running):
    server: Running = running(seconds=0.02)
    order: list[int] = []

    def ask(number: int) -> None:
        status, _ = post(server.port, picture(), source=f"127.0.0.{number + 1}")
        assert status == 200
        order.append(number)

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
    begun = time.monotonic()
    for client in clients:
        client.start()
        time.sleep(0.01)  # they come in order, faster than they are served
    for client in clients:
        client.join()
    print(f"64 clients: {time.monotonic() - begun:.1f} s")
    assert sorted(order) == [*range(64)]
    moved = [abs(place - number) for place, number in enumerate(order)]
    assert max(moved) <= 8  # threads here and there take their time


def test_a_client_that_leaves_frees_its_entry_and_is_not_segmented(running):
    server: Running = running("queue=2", seconds=1.0)

    def waiting() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("GET", "/status")
        text = connection.getresponse().read()
        connection.close()
        return int(text.split(b'"waiting":')[1].split(b"}")[0])

    body = picture()
    for content in (body, body[:10]):  # one waits for its answer, one still sends
        first = threading.Thread(target=post, args=(server.port, body))
        first.start()
        until(lambda: waiting() == 1)
        with socket.create_connection(("127.0.0.1", server.port)) as leaving:
            leaving.sendall(head(body) + content)
            until(lambda: waiting() == 2)
            assert post(server.port, body)[0] == 503
        until(lambda: waiting() < 2)
        first.join()
        begun = time.monotonic()
        assert post(server.port, body)[0] == 200
        assert time.monotonic() - begun < 1.9  # not after the one that left


def test_a_client_that_sends_too_slowly_is_refused(running):
    server: Running = running("upload_seconds=0.3")
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
        slow.sendall(head(bytes(100)) + b"abc")
        assert b" 408 " in slow.recv(200)


def test_ctrl_c_ends_it_at_once_whoever_waits(running):
    server: Running = running(seconds=20.0)
    with socket.create_connection(("127.0.0.1", server.port)) as waiting:
        waiting.sendall(head(body := picture()) + body)
        time.sleep(0.3)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=10) == 130
        assert time.monotonic() - begun < 3
    assert server.process.stderr.read().strip() == "ended"


def test_a_port_in_use_is_one_clear_message(running):
    server: Running = running()
    with pytest.raises(AssertionError, match="another program listens there"):
        Running(server.port)


@pytest.mark.slow
def test_the_command_serves_the_shipped_weights_until_ctrl_c():
    sample = next(sample_images.FOLDER.glob("*.jpg")).read_bytes()
    with serving() as (process, address):
        port = int(address.rpartition(":")[2])
        with urllib.request.urlopen(address, timeout=60) as page:
            assert b"segret_tiny_camvid" in page.read()
        status, content = post(port, sample)
        assert status == 200
        shares = {one["name"]: one["share"] for one in json.loads(content)["classes"]}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)  # rounded
        assert shares["road"] > 0.1
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert time.monotonic() - begun < 3
        assert process.stderr.read().splitlines()[-1] == "ended"
