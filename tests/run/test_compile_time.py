"""What a run says of the compilation: the first time here, or how long it took before."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from segret_jax.config import Config, ModelConfig, TrainConfig
from segret_jax.parallel.mesh import make_mesh
from segret_jax.run import compilation
from segret_jax.run.compilation import RECORD, expected_compilation

CONFIG = Config()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[Path]:
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def words(config: Config = CONFIG, *events: str) -> str:
    with expected_compilation(config, make_mesh(config.mesh)) as said:
        for event in events:
            jax.monitoring.record_event(event)
    return said


def test_the_first_time_and_later_ones_are_distinguished(cache):
    assert words() == "first time here, usually 0:30 to 2:00"
    record = json.loads((cache / RECORD).read_text())
    ((key, entry),) = record.items()
    (cache / RECORD).write_text(json.dumps({key: entry | {"seconds": 101.7}}))
    slow, fast = (f"{time} the last time; seconds if cached" for time in ("1:41", "0:00"))
    assert words(CONFIG, compilation.CACHE_HIT) == slow
    assert words(Config(train=TrainConfig(log_every=7)), compilation.CACHE_HIT) == slow
    # A small program was cached.
    assert words(CONFIG, compilation.CACHE_HIT, compilation.CACHE_MISS) == slow
    assert words() == fast
    assert words(Config(model=ModelConfig(variant="base"))).startswith("first time here")


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', None])
def test_a_broken_record_harms_nothing(cache, content):
    if content is None:
        (cache / RECORD).mkdir()
    else:
        (cache / RECORD).write_text(content)
    assert words().startswith("first time here")


def test_without_a_cache_nothing_is_promised():
    jax.config.update("jax_compilation_cache_dir", None)
    assert words() == "usually 0:30 to 2:00"
