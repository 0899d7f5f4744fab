"""Names inside wrappers, and counters of averaged weights, give the model that they wrap."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from segret_jax.config import ModelConfig
from segret_jax.convert.exporting import write_tensors
from segret_jax.convert.importing import Imported, import_tensors
from segret_jax.convert.tensors import TensorFile, read_tensors, strip_prefixes
from segret_jax.errors import InputError
from tests import golden_weights as golden
from tests.convert.forge import state, tensor, write_zip
from tests.convert.models import CLASSIFIER, random_tensors
from tests.convert.test_tensors import DATA, fault

NAMES = ("backbone.layers.0.blocks.0.pos.conv.bias", "decode_head.linear_pred.bias")
ENCODER = ("layers.0.blocks.0.pos.conv.bias", "patch_embed.proj.0.bias")


def cut_prefixes(names: Iterable[str]) -> tuple[list[str], str]:
    tensors = {name: np.zeros(1) for name in names}
    file = strip_prefixes("a", TensorFile(tensors=tensors, format="npz", metadata={}))
    return list(file.tensors), file.prefix


def saved(path: Path, names: list[str]) -> Path:
    write_tensors(path, {name: np.full(2, i, np.float32) for i, name in enumerate(names)}, {})
    return path


@pytest.mark.parametrize("names", [NAMES, ENCODER], ids=["segret", "encoder"])
@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.",
        "model.module._orig_mod.", "module.model.module.", "net.", "model.segmentor._orig_mod.",
        "_forward_module._fsdp_wrapped_module.",
    ],
)  # fmt: skip
def test_prefixes_are_cut_in_any_order(tmp_path: Path, prefix: str, names: tuple[str, ...]) -> None:
    found = read_tensors(saved(tmp_path / "a.npz", [prefix + name for name in names]))
    assert list(found.tensors) == list(names)
    assert found.prefix == prefix
    assert [t[0] for t in found.tensors.values()] == [0, 1]


def test_a_wrapper_of_one_part_is_cut_inside_of_the_names(tmp_path: Path) -> None:
    inside = [NAMES[0].replace(".", "._orig_mod.module.", 1), NAMES[1]]
    assert list(read_tensors(saved(tmp_path / "a.npz", inside)).tensors) == list(NAMES)


@pytest.mark.parametrize("other", ["n_averaged", "epoch", "criterion.weight"])
def test_tensors_beside_the_model_do_not_hide_the_prefix(tmp_path: Path, other: str) -> None:
    names = [other, *(f"module.net.{name}" for name in NAMES)]
    found = read_tensors(saved(tmp_path / "a.npz", names))
    assert list(found.tensors) == [other, *NAMES]
    assert found.prefix == "module.net."


@pytest.mark.parametrize("model", ["segret_tiny", "rmt_tiny"])
def test_released_names_have_no_prefix(model: str) -> None:
    names = golden.keys(model)
    assert cut_prefixes(names) == (list(names), "")


def test_two_models_in_one_state_dict_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", [f"model.{NAMES[0]}", f"module.{NAMES[0]}"])
    assert fault(path) == (
        f"holds 'model.{NAMES[0]}' and 'module.{NAMES[0]}', which are two models in one state "
        "dict; save the state dict of one of them"
    )
    both = [f"{who}.{NAMES[0]}" for who in ("student", "teacher")]
    assert cut_prefixes(both) == (both, "")


def test_averaged_weights_of_real_pytorch_are_read() -> None:
    found = read_tensors(DATA / "averaged.pth")
    assert (found.prefix, found.tensors["n_averaged"].item()) == ("module._orig_mod.", 1)
    np.testing.assert_array_equal(found.tensors["0.weight"], np.arange(6).reshape(2, 3) / 4 + 1)


def test_the_only_state_dict_is_taken_whatever_its_key(tmp_path: Path) -> None:
    found = read_tensors(write_zip(tmp_path / "a", state(net=state(w=tensor()), epoch=b"K\x03")))
    assert (found.wrapper, list(found.tensors)) == ("net", ["w"])
    counter = tensor(0, (), ())
    found = read_tensors(write_zip(tmp_path / "a", state(net=state(w=tensor()), steps=counter)))
    assert (found.wrapper, list(found.tensors), found.beside) == ("net", ["w"], ("steps",))


# Counters beside the weights, in what is imported of them.


def imported(tensors: dict[str, np.ndarray], *allow: str) -> Imported:
    return import_tensors(tensors, ModelConfig(), allow=allow)


@pytest.mark.usefixtures("mini")
def test_counters_of_averages_are_dropped_for_a_reason_and_not_exported(tmp_path: Path) -> None:
    tensors = random_tensors()
    averaged = {"n_averaged": np.array(7), "steps": np.array([7])}
    wrapped = averaged | {f"module.{name}": tensor for name, tensor in tensors.items()}
    write_tensors(tmp_path / "a.npz", wrapped, {})
    result = imported(read_tensors(tmp_path / "a.npz").tensors)
    assert result.dropped.keys() == averaged.keys() | imported(tensors).dropped.keys()
    assert result.dropped["n_averaged"] == "counter of the weights' average, read by nothing"
    assert not result.unused.keys() & averaged.keys()
    # Asked for explicitly, too; but a whole tensor of that name is none.
    assert "n_averaged" in imported(tensors | averaged, "^n_averaged$").dropped
    with pytest.raises(InputError, match=r"n_averaged \[4\] is not in the model"):
        imported(tensors | {"n_averaged": np.zeros(4)})


@pytest.mark.usefixtures("mini")
def test_allow_drops_what_stops_a_model_from_being_recognized() -> None:
    tensors = random_tensors(6, **CLASSIFIER)
    misleading = tensors | {"decode_head.counter": np.zeros(1)}  # as of a SegRet without its head
    with pytest.raises(InputError, match=r"lacks decode_head\.linear_pred"):
        imported(misleading)
    result = imported(misleading, "counter$")
    assert result.recognized.model.task == "classification"
    assert result.dropped["decode_head.counter"] == "accepted by --allow 'counter$'"
    stage = tensors | {"layers.7.blocks.0.steps": np.zeros(1)}
    with pytest.raises(InputError, match="as no variant of segret"):
        imported(stage, "^steps")
    assert imported(stage, "steps$").recognized.num_classes == 6
