"""Programs kept on the disk: found without tracing, never taken for another, never in the way."""

import functools
import os
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segret_jax.config import Config, EvalConfig
from segret_jax.evaluation.inference import Predictor, compiled_programs
from segret_jax.run import stored_programs
from segret_jax.run.stored_programs import StoredProgram
from tests.conftest import slow
from tests.settings import segman, segret
from tests.weights import random_model

X = np.arange(6, dtype=np.float32)
traced: list[str] = []


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keep programs in a folder of the test; `traced` gets the functions that are traced."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    use_folder(tmp_path)
    traced.clear()
    yield tmp_path
    use_folder(before)


def use_folder(folder: Any) -> None:
    jax.config.update("jax_compilation_cache_dir", folder and str(folder))
    compilation_cache.reset_cache()


def scaled(x: Any, by: float) -> Any:
    traced.append("scaled")
    return x * by, {"sum": (x * by).sum()}


def shifted(x: Any, by: float) -> Any:
    traced.append("shifted")
    return x + by, {"sum": (x + by).sum()}


def program(function: Callable = scaled, by: float = 2.0, num_devices: int = 1) -> StoredProgram:
    """Return the program as a process makes it that starts anew."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",))
    whole = functools.partial(function, by=by)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return StoredProgram(jax.jit(whole, in_shardings=sharding), whole, mesh)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.program"))


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_later_start_traces_nothing_and_computes_the_same(folder, num_devices):
    first = program(num_devices=num_devices)
    expected = [first(X), first(X)]
    assert len(traced) == len(kept(folder)) == 1
    later = program(num_devices=num_devices)
    for found, known in zip([later(X), later(X)], expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, known)
        assert found[0].sharding == known[0].sharding
    assert len(traced) == 1


def test_each_shape_and_dtype_has_its_own(folder):
    run = program()
    for x in (X, X[:4], X.astype(np.int32)):
        np.testing.assert_array_equal(run(x)[0], 2 * x)
        np.testing.assert_array_equal(program()(x)[0], 2 * x)
    assert len(traced) == len(kept(folder)) == 3


def test_another_function_constant_or_number_of_devices_is_another_program(folder):
    for make in (program, lambda: program(shifted), lambda: program(by=3.0)):
        make()(X)
    program(num_devices=2)(X)
    assert len(traced) == len(kept(folder)) == 4


def change_cores(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(psutil.Process, "cpu_affinity", lambda _: [0] * 99)


def change_version(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stored_programs.flax, "__version__", "99.0")


def change_flags(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")


def change_processor(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stored_programs, "processor", lambda: "another")


@pytest.mark.parametrize("change", [change_cores, change_version, change_flags, change_processor])
def test_what_a_program_depends_on_is_in_its_key(folder, monkeypatch, change):
    program()(X)
    change(monkeypatch)
    program()(X)
    assert len(traced) == len(kept(folder)) == 2


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Take a folder of one file for the package; yield its writer."""
    assert (stored_programs.PACKAGE / "models" / "forward.py").is_file()
    monkeypatch.setattr(stored_programs, "PACKAGE", tmp_path / "package")
    file = tmp_path / "package" / "code.py"
    file.parent.mkdir()

    def write(text: str, *, age: int) -> None:
        """Write it `age` seconds before the start of this process."""
        file.write_text(text)
        os.utime(file, (psutil.Process().create_time() - age,) * 2)
        stored_programs._code.cache_clear()

    yield write
    stored_programs._code.cache_clear()


def test_edited_code_is_another_program(folder, package):
    for text in ("1", "2", "1"):
        package(text, age=9)
        program()(X)
    assert len(traced) == len(kept(folder)) == 2


def test_of_code_that_was_edited_since_the_start_none_is_kept(folder, package):
    package("1", age=-9)
    np.testing.assert_array_equal(program()(X)[0], 2 * X)
    assert not kept(folder)


def test_devices_of_another_kind_have_other_programs(folder, monkeypatch):
    program()(X)
    run = program()
    kind = types.SimpleNamespace(
        device_kind="another", platform="cpu", client=jax.devices()[0].client
    )
    devices = types.SimpleNamespace(devices=np.array([kind]), shape=run._mesh.shape)
    signature = jax.tree.structure(((X,), {})), (X.shape, X.dtype)
    (file,) = kept(folder)
    assert run._file(signature) == file
    run._mesh = devices
    assert run._file(signature) != file
    kind.platform = "cuda"
    assert run._file(signature) is None


def test_a_setting_of_jax_is_in_its_key_even_if_it_is_of_this_thread_alone(folder):
    program()(X)
    with jax.default_matmul_precision("bfloat16"):
        program()(X)
    assert len(kept(folder)) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-100],
        lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:],
        lambda content: b"no program",
    ],
    ids=["empty", "cut off", "a bit", "other"],
)
def test_a_damaged_file_is_made_anew(folder, damage):
    program()(X)
    (file,) = kept(folder)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    np.testing.assert_array_equal(program()(X)[0], 2 * X)
    assert len(traced) == 2
    program()(X)
    assert len(traced) == 2


@pytest.mark.parametrize("name", ["file", None])
def test_a_folder_that_cannot_be_used_is_no_fault(folder, name):
    (folder / "file").touch()
    use_folder(folder / name if name == "file" else name)
    np.testing.assert_array_equal(program()(X)[0], 2 * X)
    assert [file.name for file in folder.iterdir()] == ["file"]


def test_in_a_bucket_nothing_is_kept():
    use_folder("gs://nowhere/cache")
    assert program()._file(((X.shape, X.dtype),)) is None


def test_a_folder_that_is_missing_is_made(folder):
    use_folder(folder / "new" / "cache")
    program()(X)
    assert kept(folder / "new" / "cache")


def test_a_folder_of_others_is_read(folder, monkeypatch):
    program()(X)

    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(stored_programs, "_is_writable", lambda _: False)
    monkeypatch.setattr(os, "utime", refuse)
    program()(X)
    assert len(traced) == 1
    program()(X[:2])  # by way of JAX's cache
    assert len(traced) == 2
    assert len(kept(folder)) == 1


def test_without_jax_s_cache_nothing_is_kept(folder):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        program()(X)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not list(folder.iterdir())


def test_a_function_that_cannot_be_told_from_others_is_not_kept(folder):
    local = functools.partial(lambda x, by: x * by)
    np.testing.assert_array_equal(program(local)(X), 2 * X)
    assert not kept(folder)


def test_the_oldest_are_deleted(folder, monkeypatch):
    monkeypatch.setattr(stored_programs, "MAX_FILES", 2)
    for by in (1.0, 2.0, 1.0, 3.0):  # the third reads the first
        program(by=by)(X)
        time.sleep(0.02)  # the clock of file systems is coarse
    assert len(traced) == 3
    program(by=1.0)(X)
    assert len(traced) == len(kept(folder)) + 1 == 3
    program(by=2.0)(X)
    assert len(traced) == 4


@pytest.mark.parametrize("settings", [segret, *slow(segman)], ids=["segret", "segman"])
def test_a_predictor_computes_the_same_from_kept_programs(folder, settings, monkeypatch, mini):
    config = Config(model=settings(), eval=EvalConfig(resize_target=(256, 224)))
    bundle = random_model(config.model, 5)
    image = np.random.default_rng(0).integers(0, 256, (224, 256, 3), np.uint8)

    def probabilities(**options: Any) -> np.ndarray:
        compiled_programs.cache_clear()
        return Predictor.from_config(bundle, config, **options).probabilities(image)

    expected = probabilities()
    assert not kept(folder)
    np.testing.assert_array_equal(probabilities(stored=True), expected)
    assert kept(folder)

    monkeypatch.setattr(stored_programs, "_without_cache", None)  # so that none is compiled
    np.testing.assert_array_equal(probabilities(stored=True), expected)
    compiled_programs.cache_clear()
