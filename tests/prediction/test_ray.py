"""Predictions on Ray, with processes that are killed, against those of plain `segret predict`."""

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segret_jax.checkpoint.orbax_model import save_model
from segret_jax.config import Config, EvalConfig
from segret_jax.data.decode import decode_label
from tests.settings import segret
from tests.weights import random_model, table_of

pytestmark = pytest.mark.slow  # Ray and the actors take seconds to start
pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]
SIZES = ((64, 48), (48, 64), (640, 480), (480, 600), (700, 500))
NUM_GOOD, NUM_BROKEN = 40, 3
TIMEOUT = 900  # seconds, on a busy machine


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, and pictures of several sizes, some of them broken."""
    home = tmp_path_factory.mktemp("ray")
    config = Config(model=segret(), eval=EvalConfig(resize_target=(96, 48)))
    bundle = random_model(config.model, 5)
    save_model(home / "model", config=config, table=table_of(5), bundle=bundle, source={})
    rng, photos = np.random.default_rng(0), home / "photos"
    photos.mkdir()
    for i in range(NUM_GOOD):
        height, width = SIZES[i % len(SIZES)]
        pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(photos / f"{i:02d}.jpg")
    (photos / "broken0.jpg").write_bytes(b"")
    (photos / "broken1.png").write_bytes(b"no picture")
    (photos / "broken2.jpg").write_bytes((photos / "03.jpg").read_bytes()[:2000])
    return home


@pytest.fixture(scope="module")
def environment(home: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of all processes: one compile cache, and one folder of Ray."""
    # Not in tmp_path: the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        yield os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "SEGRET_HUGE_PAGES": "0",
        }


@pytest.fixture(scope="module")
def plain(home: Path, environment: dict[str, str]) -> Path:
    """Return the folder of the outputs of plain `segret predict`."""
    done = start(environment, home / "photos", home / "model", home / "plain", "--save", "label")
    assert finish(done, status=1).endswith("\n")
    return home / "plain"


@pytest.fixture(scope="module")
def cluster(home: Path, environment: dict[str, str]) -> Iterator[str]:
    """Start a Ray cluster of one machine, which believes that it has 4 cores; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--head", "--block", f"--port={port}", "--num-cpus=4", "--include-dashboard=false")
    ray = shutil.which("ray", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    command = [str(ray), "start", *options]
    log = home / "cluster.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text(), process)
        yield f"127.0.0.1:{port}"
    finally:
        children = []
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        wait_until_gone(children, patience=0)


def start(
    environment: dict[str, str], photos: Path, model: Path, out: Path, *options: object
) -> subprocess.Popen:
    command = [photos, "--checkpoint", model, "--out", out, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "segret_jax", "predict", *map(str, command)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: subprocess.Popen, *, status: int) -> str:
    """Wait for a process; return what it printed."""
    try:
        printed = process.communicate(timeout=TIMEOUT)[0]
    finally:
        process.kill()
    assert process.returncode == status, printed[-5000:]
    return printed


def wait_for(what: Callable[[], Any], process: subprocess.Popen) -> Any:
    """Return the first result of `what` that is not empty."""
    deadline = time.monotonic() + TIMEOUT
    while not (found := what()):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError((process.communicate()[0] or "")[-5000:])
        time.sleep(0.02)
    return found


def wait_until_gone(processes: list[psutil.Process], *, patience: float = 20) -> list[str]:
    """End processes; return the names of those that were still there after `patience` seconds."""
    names = []
    for process in psutil.wait_procs(processes, timeout=patience)[1]:
        with contextlib.suppress(psutil.Error):
            names.append(process.name())
            process.kill()
    return names


def actors(folder: Path) -> list[psutil.Process]:
    """Return the processes of actors whose Ray has its files in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name().startswith("ray::Map") and str(folder) in str(process.environ()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def files(out: Path) -> list[Path]:
    return sorted(out.glob("*.parquet"))


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """Return the rows by the pictures' names; each must be there once."""
    rows = [row for file in files(out) for row in pq.read_table(file).to_pylist()]
    named = {Path(row["path"]).name: row for row in rows}
    assert len(named) == len(rows)
    return named


def assert_as_plain(out: Path, plain: Path) -> None:
    rows = rows_of(out)
    assert len(rows) == NUM_GOOD + NUM_BROKEN
    for name, row in rows.items():
        if name.startswith("broken"):
            assert name in row["error"]
            assert row["label"] is row["height"] is None
        else:
            label = decode_label(plain / f"{Path(name).stem}_label.png")
            np.testing.assert_array_equal(decode_label(row["label"], where=name), label)
            assert (row["height"], row["width"]) == label.shape
            assert row["error"] is None
            with Image.open(io.BytesIO(row["label"])) as image:
                assert image.mode == "P"


def test_a_killed_actor_costs_nothing(home, environment, plain, cluster):
    out = home / "actor"
    options = ("--cpus-per-model", 2, "--ray", cluster)
    process = start(environment, home / "photos", home / "model", out, *options)
    wait_for(lambda: files(out), process)
    found = actors(Path(environment["RAY_TMPDIR"]))
    assert len(found) == 2
    found[0].kill()
    printed = finish(process, status=1)
    assert "2 models, each with 2 CPU cores" in printed
    assert f"{NUM_BROKEN} could not be read:" in printed
    assert_as_plain(out, plain)
    assert "fork" not in printed


def test_too_few_cpus_are_an_error_and_no_wait(home, environment, cluster):
    options = ("--cpus-per-model", 5, "--ray", cluster)
    process = start(environment, home / "photos", home / "model", home / "few", *options)
    assert "needs 5 CPU cores on one machine, but free CPU cores" in finish(process, status=2)


def test_a_killed_driver_goes_on(home, environment, plain):
    """On a Ray of its own, on this machine."""
    out = home / "driver"
    arguments = (environment, home / "photos", home / "model", out, "--cpus-per-model", 1, "--ray")
    process = start(*arguments)
    wait_for(lambda: len(files(out)) > 1, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # Ray's agents notice the end of their parent later, and do no work.
    left = wait_until_gone(children)
    assert not [name for name in left if "Agent" not in name and "RuntimeEnv" not in name]
    before = {file: file.read_bytes() for file in files(out)}
    whole = {file: content for file, content in before.items() if content[-4:] == b"PAR1"}
    num_done = len(rows_of(out)) if whole == before else 0
    assert num_done < NUM_GOOD + NUM_BROKEN
    printed = finish(start(*arguments), status=1)
    if num_done:
        assert f"{num_done} of them segmented before" in printed
    assert {file: file.read_bytes() for file in whole} == whole
    assert_as_plain(out, plain)
    # They notice the end of their parent within seconds, too.
    assert not wait_until_gone(actors(Path(environment["RAY_TMPDIR"])))


def test_an_unwritable_output_is_refused_before_ray_starts(home, environment):
    (home / "file").touch()
    process = start(environment, home / "photos", home / "model", home / "file", "--ray", "auto")
    assert "error: cannot write to" in finish(process, status=2)
