"""Objects beside the tensors of a pickle become inert records, whatever package they are of."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from segret_jax.convert.records import Record, read_array
from segret_jax.convert.tensors import read_tensors
from tests.convert.forge import call, name, state, tensor, value, write_zip
from tests.convert.test_tensors import DATA, fault
from tests.convert.test_torch_file import LIVE

BUFFER = "mmengine.logging.history_buffer.HistoryBuffer"


def test_a_checkpoint_of_real_mmengine_is_read() -> None:
    """Its `HistoryBuffer` holds NumPy arrays, and its own methods by `getattr`."""
    assert b"__builtin__\ngetattr" in (DATA / "mmengine.pth").read_bytes()
    found = read_tensors(DATA / "mmengine.pth")
    assert (found.wrapper, found.other_wrappers) == ("state_dict", ("ema_state_dict",))
    np.testing.assert_array_equal(found.tensors["0.weight"], np.arange(6).reshape(2, 3) / 4)
    assert found.metadata["message_hub"] == {
        "log_scalars": {"train/loss": "dict of 4"},
        "runtime_info": {"iter": 1, "best": 0.5, "when": "datetime.datetime"},
        "resumed_keys": {"train/loss": True},
    }
    assert found.metadata["extra"] == {"a": [1]}
    ema = read_tensors(DATA / "mmengine.pth", wrapper="ema_state_dict")
    assert (ema.prefix, ema.tensors["steps"].item()) == ("module._orig_mod.", 1)


def metadata(tmp_path: Path, item: bytes) -> object:
    return read_tensors(write_zip(tmp_path / "a", state(w=tensor(), x=item))).metadata["x"]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (name("addict.addict.Dict") + b")\x81(" + value("lr") + value(0.5) + b"u", {"lr": 0.5}),
        (call("mmengine.config.config.ConfigDict", value({"lr": 0.5})), {"lr": 0.5}),
        (name("__main__.Settings") + b")\x81" + value({"lr": 0.5}) + b"b", {"lr": 0.5}),
        (name("tools.meters.History") + b")\x81(" + value(1) + value(2) + b"e",
         "tools.meters.History"),
        (call("__builtin__.getattr", name("own.Outer"), value("Inner")) + b")\x81", "own.Outer"),
        (call("numpy.random._pickle.__randomstate_ctor", value("MT19937")),
         "numpy.random._pickle.__randomstate_ctor"),
        (call("collections.defaultdict", name("__builtin__.list")) + value("a") + value([1]) + b"s",
         {"a": [1]}),
        (call("collections.deque", value([]), value(5)) + b"(" + value(1) + b"e", [1]),
        (call("datetime.timedelta", value(1), value(2), value(3)), "datetime.timedelta"),
        (call("torch.torch_version.TorchVersion", value("2.11")), "torch.__version__"),
        (call("torch.device", value("cuda"), value(1)), "cuda:1"),
        (call("torch.Size", value((2, 3))), [2, 3]),
        (call("pathlib.WindowsPath", value("C:"), value("runs")), "C:/runs"),
        (call("__builtin__.bytes"), "bytes"),
        (call("numpy.core.multiarray.scalar", call("numpy.dtype", value("U2")) + value((3, "<"))
              + b"b", call("_codecs.encode", value("a\0\0\0b\0\0\0"), value("latin1"))),
         "numpy.generic"),
    ],
    ids=lambda item: "" if isinstance(item, bytes) else str(item)[:20],
)  # fmt: skip
def test_objects_of_other_writers_are_inert(tmp_path: Path, item: bytes, expected: object) -> None:
    assert metadata(tmp_path, item) == expected


def test_a_record_runs_nothing_even_of_a_package_that_is_there(tmp_path: Path) -> None:
    """`runstring` of NumPy executes its first argument, and `pickle.loads` does it."""
    marker = tmp_path / "marker"
    run = name("numpy.testing._private.utils.runstring")
    attack = run + value((f"open({str(marker)!r}, 'w').close()", {})) + b"R"
    pickle.loads(b"\x80\x02" + attack + b".")
    assert marker.exists()
    marker.unlink()
    assert metadata(tmp_path, attack) == "numpy.testing._private.utils.runstring"
    assert not marker.exists()


@pytest.mark.parametrize("asked", LIVE)
def test_an_attack_inside_of_a_record_is_refused(tmp_path: Path, asked: str) -> None:
    marker = tmp_path / "marker"
    item = name(BUFFER) + b")\x81}" + value("a") + LIVE[asked](str(marker)) + b"sb"
    message = fault(write_zip(tmp_path / "a", state(w=tensor(), message_hub=item)))
    assert f"asks for {asked!r}, which is not needed to rebuild tensors; it was not run" in message
    assert not marker.exists()


@pytest.mark.parametrize(
    "asked",
    ["mmengine..x", ".x", "a." + "b" * 200, "a-b.c", "torch.hub.load", "nt.system"],
)
def test_names_that_are_no_objects_of_a_package_are_refused(tmp_path: Path, asked: str) -> None:
    assert "which is not needed to rebuild tensors" in fault(
        write_zip(tmp_path / "a", state(w=tensor(), x=name(asked)))
    )


def test_items_and_attributes_only_go_where_they_belong(tmp_path: Path) -> None:
    record = name(BUFFER) + b")\x81"
    for item, told in (
        (record + value([1]) + b"b" + value("k") + value(1) + b"s", "items for a list"),
        (record + b"(" + value((1,) * 9) + b"Nu", "a tuple as key"),
        (name(BUFFER) + value({"x": 1}) + b"b", "a state for a Name"),
        (call("collections.deque", value([1])), "a deque with items"),
    ):
        assert told in fault(write_zip(tmp_path / "a", state(w=tensor(), x=item)))


def test_arrays_are_read_up_to_a_size() -> None:
    dtype = Record("numpy.dtype", ("i8", False, True), (3, "<"))
    data = np.arange(6).tobytes()

    def array(*state: object) -> Record:
        return Record("numpy.ndarray", (), (1, *state))

    text = Record("bytes", (data.decode("latin1"),))
    for raw in (data, text):
        np.testing.assert_array_equal(read_array(array((2, 3), dtype, False, raw), 6),
                                      [[0, 1, 2], [3, 4, 5]])  # fmt: skip
        np.testing.assert_array_equal(read_array(array((2, 3), dtype, True, raw), 6)[:, 0], [0, 1])
        assert read_array(array((2, 3), dtype, False, raw), 5) is None
    for other in (
        array((2, 3), Record("numpy.dtype", ("O8",)), False, data),
        Record("bytes", ("x",)), array((6,), dtype), [1, 2],
    ):  # fmt: skip
        assert read_array(other, 6) is None
