"""What the hashes of weights and code depend on."""

from pathlib import Path

import jax
import numpy as np
import pytest

from segret_jax.digests import code_digest, weights_digest

WEIGHTS = {"params": {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(3)}, "stats": [np.ones(2)]}


@pytest.mark.parametrize(
    "other",
    [
        {"params": {"w": np.arange(6.0).reshape(3, 2), "b": np.zeros(3)}, "stats": [np.ones(2)]},
        {"params": {"w": np.arange(6.0).reshape(2, 3), "c": np.zeros(3)}, "stats": [np.ones(2)]},
        jax.tree.map(lambda x: x.view(np.int64), WEIGHTS),
        jax.tree.map(lambda x: np.nextafter(x, 9), WEIGHTS),
    ],
    ids=["shape", "path", "dtype", "last bit"],
)
def test_weights_differ_by_shape_path_dtype_and_each_bit(other):
    assert weights_digest(other) != weights_digest(WEIGHTS)


def test_weights_are_the_same_on_the_device_and_whatever_the_keys_of_lists():
    stored = {"stats": {"0": np.ones(2)}, "params": jax.tree.map(jax.numpy.asarray, {"a": 1.5})}
    again = {"params": {"a": np.float32(1.5)}, "stats": {0: np.ones(2)}}
    assert weights_digest(stored) == weights_digest(again)


def test_code_differs_by_content_and_path_of_python_files(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text("1")
    seen = {code_digest(tmp_path)}
    (tmp_path / "notes.txt").write_text("2")
    seen.add(code_digest(tmp_path))
    assert len(seen) == 1
    (tmp_path / "a.py").write_text("x = 2\n")
    seen.add(code_digest(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").rename(tmp_path / "sub" / "a.py")
    assert len(seen | {code_digest(tmp_path)}) == 3
