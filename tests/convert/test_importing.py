"""Strict in both directions: what does not fit is an error that lists all, or allowed by name."""

import jax
import ml_dtypes
import numpy as np
import pytest

from segret_jax.config import ModelConfig
from segret_jax.convert.importing import Imported, import_tensors
from segret_jax.errors import InputError
from segret_jax.models.factory import build
from tests.convert.models import CLASSIFIER, random_tensors

Q = "backbone.layers.1.blocks.0.retention.q_proj.weight"
FC1 = "backbone.layers.0.blocks.0.ffn.fc1.weight"
DECAY = "backbone.layers.2.Relpos.decay"
COUNTER = "decode_head.linear_fuse.bn.num_batches_tracked"

pytestmark = pytest.mark.usefixtures("mini")


def imported(tensors: dict[str, np.ndarray], *allow: str) -> Imported:
    return import_tensors(tensors, ModelConfig(), allow=allow)


def differences(tensors: dict[str, np.ndarray], *allow: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        imported(tensors, *allow)
    first, *lines = str(caught.value).split("\n  ")
    assert f"differs from segret_tiny with 5 classes in {len(lines)} tensors" in first
    return lines


def kernel(result: Imported) -> np.ndarray:
    return result.bundle.params["encoder"]["stages"][1][0]["retention"]["q"]["kernel"]


def test_every_tensor_is_used_or_dropped_for_a_reason() -> None:
    tensors = random_tensors()
    result = imported(tensors)
    assert result.leaves.keys() | result.dropped.keys() == tensors.keys()
    assert not result.leaves.keys() & result.dropped.keys()
    assert not result.initialized
    assert set(result.dropped.values()) == {
        "counter of PyTorch's batch norm, read by nothing",
        "constant, equal to what is computed here",
        "layer that the original never calls",
    }
    np.testing.assert_array_equal(kernel(result), tensors[Q].T)
    trees = result.bundle.variables
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trees)} == {"float32"}


def test_buffers_may_be_absent() -> None:
    tensors = random_tensors()
    buffers = ("Relpos", "num_batches_tracked", "conv_seg")
    bare = {n: t for n, t in tensors.items() if not any(b in n for b in buffers)}
    assert not imported(bare).dropped
    np.testing.assert_array_equal(kernel(imported(bare)), kernel(imported(tensors)))


def test_one_error_lists_all_differences_with_the_nearest_names() -> None:
    tensors = random_tensors()
    tensors[Q.replace("q_proj", "query_proj")] = tensors.pop(Q)  # renamed
    del tensors["decode_head.linear_pred.bias"]
    tensors["decode_head.extra"] = np.zeros((2, 3))
    tensors[FC1] = tensors[FC1].T
    tensors["backbone.patch_embed.proj.0.bias"] = np.zeros(4, np.int32)
    tensors["backbone.patch_embed.proj.3.bias"] = np.full(4, np.nan, np.float32)
    tensors["backbone.patch_embed.proj.6.bias"] = np.full(8, 1e39)
    tensors[DECAY] = tensors[DECAY][::-1]
    renamed = Q.replace("q_proj", "query_proj")
    lines = sorted(differences(tensors))
    assert lines.pop(3).startswith(f"{DECAY} begins [")
    assert lines == sorted(
        [
            f"{Q} [16, 16] is missing; nearest: {renamed}",
            f"{renamed} [16, 16] is not in the model; nearest: {Q}",
            "decode_head.linear_pred.bias [5] is missing; nearest: decode_head.extra",
            "decode_head.extra [2, 3] is not in the model; nearest: decode_head.linear_pred.bias",
            f"{FC1} is [8, 16], the model needs [16, 8] (transposed?)",
            "backbone.patch_embed.proj.0.bias is of type int32, the model needs floating point",
            "backbone.patch_embed.proj.3.bias has values that are not finite in float32",
            "backbone.patch_embed.proj.6.bias has values that are not finite in float32",
        ]
    )


def test_another_decay_is_another_model() -> None:
    tensors = random_tensors()
    tensors[DECAY] = tensors[DECAY].astype(ml_dtypes.bfloat16)  # rounded: still the same
    assert DECAY in imported(tensors).dropped
    tensors[DECAY] = random_tensors()[DECAY] * np.float32(1.001)
    (line,) = differences(tensors)
    assert "another model" in line


def test_a_constant_of_another_shape_or_beyond_float32_is_another_model() -> None:
    assert differences(random_tensors() | {DECAY: np.zeros(3)}) == [
        f"{DECAY} is [3], the original's is [2]"
    ]
    (line,) = differences(random_tensors() | {DECAY: np.full(2, 1e300)})
    assert "begins [1.e+300 1.e+300]" in line


def test_unused_tensors_are_checked_for_shape_and_type() -> None:
    name = "decode_head.conv_seg.weight"
    wrong = {name: np.zeros((5, 256, 1, 1), np.float32), COUNTER: np.zeros((3, 3))}
    assert differences(random_tensors() | wrong) == [
        f"{name} is [5, 256, 1, 1], the original's is [5, 128, 1, 1]",
        f"{COUNTER} is [3, 3], the original's is []",
    ]
    wrong = {name: np.full((5, 128, 1, 1), 1e39), COUNTER: np.array(True)}
    assert differences(random_tensors() | wrong) == [
        f"{name} has values that are not finite in float32",
        f"{COUNTER} is of type bool, the original's is a number",
    ]


def test_names_are_printable_in_errors() -> None:
    tensors = random_tensors() | {"decode_head.\x1b[31m\ud800\n": np.zeros(1)}
    assert differences(tensors) == [r"decode_head.\x1b[31m\ud800\n [1] is not in the model"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32(dtype: type) -> None:
    tensors = {
        name: tensor.astype(dtype) if tensor.dtype == np.float32 else tensor
        for name, tensor in random_tensors().items()
    }
    result = imported(tensors)
    assert kernel(result).dtype == np.float32
    np.testing.assert_array_equal(kernel(result), tensors[Q].T.astype(np.float32))


def test_what_is_allowed_keeps_its_initial_value_or_is_dropped_and_is_recorded() -> None:
    tensors = random_tensors()
    expected = kernel(imported(tensors))
    tensors["decode_head.extra"] = np.zeros(1)
    tensors["decode_head.linear_pred.weight"] = tensors["decode_head.linear_pred.weight"][:, :3]
    del tensors["decode_head.linear_pred.bias"]
    result = imported(tensors, "linear_pred", "extra$")
    reason = "accepted by --allow 'linear_pred'"
    assert result.initialized == {
        "decode_head.linear_pred.weight": reason,
        "decode_head.linear_pred.bias": reason,
    }
    assert result.dropped["decode_head.linear_pred.weight"] == reason
    assert result.dropped["decode_head.extra"] == "accepted by --allow 'extra$'"
    assert "decode_head.extra" not in result.unused
    _, params, _ = build(ModelConfig(), 5, seed=0)
    classify, initial = result.bundle.params["decoder"]["classify"], params["decoder"]["classify"]
    np.testing.assert_array_equal(classify["kernel"], initial["kernel"])
    np.testing.assert_array_equal(kernel(result), expected)
    assert differences(tensors, "linear_pred") == ["decode_head.extra [1] is not in the model"]


def test_a_pattern_that_allows_nothing_or_cannot_be_read_is_an_error() -> None:
    tensors = random_tensors()
    with pytest.raises(InputError, match=r"--allow 'q_proj' fits none of 0 differences"):
        imported(tensors, "q_proj")
    with pytest.raises(InputError, match=r"--allow '\(' is no regular expression"):
        imported(tensors, "(")


def test_a_token_label_classifier_keeps_its_second_head() -> None:
    tensors = random_tensors(6, **CLASSIFIER, token_head=True)
    assert tensors["aux_head.weight"].shape == (6, 16)
    result = imported(tensors)
    assert result.recognized.num_classes == 6
    np.testing.assert_array_equal(
        result.bundle.params["aux_head"]["kernel"], tensors["aux_head.weight"].T
    )


def test_an_encoder_without_its_head_is_named_and_can_be_allowed() -> None:
    tensors = random_tensors(6, **CLASSIFIER)
    encoder = {n: t for n, t in tensors.items() if not n.startswith(("proj.", "norm.", "head."))}
    with pytest.raises(
        InputError, match=r"(?s)in 8 tensors.*head.weight \[1000, 1024\] is missing"
    ):
        imported(encoder)
    result = imported(encoder, r"^(proj|norm|head)\.")
    assert len(result.initialized) == 8
    expected = imported(tensors).bundle.params["encoder"]
    assert jax.tree.all(jax.tree.map(np.array_equal, result.bundle.params["encoder"], expected))
