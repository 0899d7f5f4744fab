"""The training of a given time: its files, its schedule."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from benchmarks import curve, gpu_train, sharded, timed_run
from benchmarks.gpu import toy
from segret_jax.checkpoint.safetensors import read_safetensors
from segret_jax.config import OptimConfig
from segret_jax.models.segman import variants as segman
from segret_jax.models.segret import FAMILY
from segret_jax.models.segret.variants import VARIANTS
from segret_jax.training.optimizer import make_optimizer


def test_the_number_of_steps_can_change_without_another_optimizer():
    """The learning rate is that of a schedule of the present number of steps."""
    config = OptimConfig(learning_rate=1e-2, weight_decay=0.0)
    params = {"encoder": {"q": {"kernel": jnp.ones((2, 2))}}}
    grads = {"encoder": {"q": {"kernel": jnp.full((2, 2), 0.5)}}}
    optimizer = timed_run.timed_optimizer(config)
    fixed = make_optimizer(config, 5, FAMILY)
    update, expected_update = jax.jit(optimizer.update), jax.jit(fixed.update)
    state, expected_state = optimizer.init(params), fixed.init(params)
    for _ in range(2):
        state = (*state[:2], jnp.int32(5))
        updates, state = update(grads, state, params)
        expected, expected_state = expected_update(grads, expected_state, params)
        both = (x["encoder"]["q"]["kernel"] for x in (updates, expected))
        np.testing.assert_allclose(*both, rtol=1e-5)
        assert optax.tree.norm(updates) > 0


def test_the_steps_end_in_time_and_their_number_follows_their_speed():
    run = timed_run.Run(gpu_train.recipe(""), time.monotonic() + 1.0 + 2.5 * 10, 10**9)

    class State:
        opt_state = (None, jnp.int32(0))

    def step(state, batch):
        time.sleep(0.01)
        return state, {"loss": 1.0, "accuracy": 50.0}

    totals = []
    run._with_total = lambda state, seconds: totals.append(seconds) or state
    begun = time.monotonic()
    run._steps(step, State, iter(lambda: None, 0), end=begun + 0.5)
    assert 0.4 < time.monotonic() - begun < 1.0
    assert run.count > 10
    assert totals[-1] == pytest.approx(0.01, rel=1.0)
    logged = [x["step"] for x in run.losses]
    assert logged[0] == timed_run.LOG_EVERY
    assert logged[-1] == run.count  # the last ones, too


def test_weights_are_written_in_parts_that_an_index_names(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"layer{i}.weight": rng.standard_normal((40, 30)).astype(np.float32)
               for i in range(5)}  # fmt: skip
    tensors["large.value"] = np.array([1e6], np.float32)
    tensors["count"] = np.array(7, np.int64)
    sharded.write(tmp_path, tensors, limit=6000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert [f.name for f in files] == [
        f"model-0000{i}-of-0000{len(files)}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) == 3
    found = {}
    for file in files:
        assert file.stat().st_size <= 6000
        with file.open("rb") as stream:
            part, _ = read_safetensors(stream, file.stat().st_size)
        assert {index["weight_map"][name] for name in part} == {file.name}
        found |= part
    assert found.keys() == tensors.keys()
    assert found["large.value"] == 1e6  # not infinity, as float16 would have it
    assert found["count"].dtype == np.int64
    assert found["layer0.weight"].dtype == np.float16
    np.testing.assert_allclose(found["layer3.weight"], tensors["layer3.weight"], rtol=1e-3)


@pytest.mark.parametrize(
    ("losses", "scores"), [([], []), ([(1, 2.0)], [(1, 5.0)]), ([(1, 3.0), (9, 1.0)], [(9, 60.0)])]
)
def test_the_curve_has_a_line_and_dots_where_there_are_points(losses, scores):
    picture = curve.draw(losses, scores)
    assert picture.shape == (curve.HEIGHT, curve.WIDTH, 3)
    assert (picture == curve.SCORE).all(-1).any() == bool(scores)
    assert (picture == curve.LOSS).all(-1).any() == (len(losses) > 1)


@pytest.fixture
def dry(monkeypatch):
    """Undo what a dry run changes in its process."""
    monkeypatch.setitem(VARIANTS, toy.NAME, toy.TOY)
    monkeypatch.setitem(segman.VARIANTS, toy.NAME, toy.SEGMAN_TOY)


@pytest.mark.slow
def test_a_dry_run_gives_six_files(dry, tmp_path, capsys):
    gpu_train.main(["--out", str(tmp_path), "--dry-run"])
    assert "6 steps" in capsys.readouterr().out
    files = sorted(file.name for file in tmp_path.iterdir())
    assert len(files) <= 6
    assert {"result.json", "curve.png", "overlays.png", "model.safetensors.index.json"} < set(files)
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (result["steps"], result["metrics"]["num_images"]) == (6, 2)
    assert [x["step"] for x in result["evaluations"]] == [6]  # the six end in the first half
    picture = np.asarray(Image.open(tmp_path / "overlays.png"))
    assert picture.shape[1] == 2 * 32
    assert picture.shape[0] > 2 * 32  # two images and a legend
