"""A bad step comes back as it was, whoever held which part of its batch."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.config import Config
from segret_jax.data.pipeline import class_table
from segret_jax.errors import InputError
from segret_jax.training import capture
from tests.checkpoint.test_checkpoint import (
    assert_equal,
    files_of_at_most,
    in_a_process_of_its_own,
    state_of,
)

TABLE = class_table(Config().data)


def batch_of(indices: list[int]) -> dict[str, np.ndarray]:
    index = np.array(indices, np.int32)
    image = np.broadcast_to(index[:, None, None, None], (len(index), 8, 8, 3)).astype(np.float32)
    label = np.broadcast_to(index[:, None, None], (len(index), 8, 8)).astype(np.uint8)
    return {"image": image, "label": label, "index": index, "skipped": np.zeros_like(index)}


@pytest.fixture
def captured(mini, tmp_path: Path) -> Path:
    """The step of a run in two processes, whose second share is written by hand here."""
    folder = tmp_path / "nonfinite_000007"
    state = dataclasses.replace(state_of(7), bad_step=jnp.int32(7))
    for batch in (batch_of([4]), batch_of([0, 2])):  # the first try leaves nothing
        capture.write(folder, state=state, config=Config(), table=TABLE, batch=batch)
    (folder / "batch_0-of-1.npz").rename(folder / "batch_0-of-2.npz")
    batch = batch_of([1, 3])
    np.savez(folder / "batch_1-of-2.npz", **{key: batch[key] for key in capture.KEYS})
    return folder


def test_load_returns_state_and_batch(captured):
    found = capture.load(captured)
    assert_equal(found.state, state_of(7))  # whose bad_step is -1
    assert found.config == Config()
    assert found.table.class_names == TABLE.class_names
    for key, expected in batch_of([0, 1, 2, 3]).items():
        if key != "skipped":
            np.testing.assert_array_equal(found.batch[key], expected, strict=True)


def test_load_names_the_missing_or_damaged_file(captured):
    kept_state = captured.parent / "kept"
    shutil.copytree(captured, kept_state)
    sums = kept_state / "state" / "sums" / "metadata"
    saved = json.loads(sums.read_text())
    sums.write_text(json.dumps(saved | {"training": saved["training"] | {"step": 8}}))
    with pytest.raises(InputError, match=r"state cannot be read \(step is not what was saved"):
        capture.load(kept_state)
    version = kept_state / "state" / "format" / "metadata"
    version.write_text('{"format": 99}')
    with pytest.raises(InputError, match=r"newer version of segret_jax .*: update segret_jax"):
        capture.load(kept_state)
    version.write_text('{"format": 2}')
    settings = kept_state / "state" / "config" / "metadata"
    content = settings.read_text()
    settings.write_text(re.sub(r'"ema_decay": 0\.0', '"ema_decay": 0.5', content))
    with pytest.raises(InputError, match=r"another training state .* of this config: 163 arrays"):
        capture.load(kept_state)
    share = captured / "batch_1-of-2.npz"
    kept = share.read_bytes()
    share.write_bytes(kept[:100])
    with pytest.raises(InputError, match=r"batch_1-of-2\.npz is damaged"):
        capture.load(captured)
    share.unlink()
    with pytest.raises(InputError, match="should hold the samples of all processes"):
        capture.load(captured)
    share.write_bytes(kept)
    shutil.rmtree(captured / "state" / "training")
    with pytest.raises(InputError, match=r"state cannot be read \(.* is missing"):
        capture.load(captured)
    shutil.rmtree(captured / "state")
    with pytest.raises(InputError, match="no config at"):
        capture.load(captured)


def test_a_disk_that_refuses_is_one_line(mini, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the step that was not finite to"):
        capture.write(
            tmp_path / "file" / "x", state=state_of(1), config=Config(), table=TABLE,
            batch=batch_of([0]),
        )  # fmt: skip


def refuse_in_the_middle(workdir: Path) -> None:
    with (
        files_of_at_most(20_000),
        pytest.raises(InputError, match="cannot write the step that was not finite"),
    ):
        capture.write(
            workdir / "x", state=state_of(1), config=Config(), table=TABLE, batch=batch_of([0])
        )


def test_a_disk_that_fills_in_the_middle_is_one_line(mini, tmp_path):
    in_a_process_of_its_own(refuse_in_the_middle, mini, tmp_path, module=__name__)
    assert not (tmp_path / "x" / "state").exists()  # nothing that looks whole
