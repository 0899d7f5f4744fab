"""The certificate: right weights pass, a wrong tensor fails and is found."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segret_jax.cli import verify
from segret_jax.config import ModelConfig
from segret_jax.errors import InputError
from segret_jax.models.factory import ModelBundle, abstract
from segret_jax.models.families import FAMILIES
from segret_jax.models.segret import FAMILY
from segret_jax.verify import certificate as certificates
from segret_jax.verify.certificate import certify, compare, noise, read_reference
from tests import golden_weights as golden
from tests.settings import segman, segret
from tests.weights import captured, model_outputs, random_model, saved_model

NUM_CLASSES = 5
MODEL = ModelConfig(matmul_precision="highest")
STAGES = FAMILY.load().stages


@pytest.fixture
def reference(mini, tmp_path) -> Path:
    """Of the random model, two cases; one has sides that are no multiples of 32."""
    parts, cases = random_model(MODEL, NUM_CLASSES), {}
    for name, shape in (("0", (1, 3, 64, 64)), ("1", (2, 3, 40, 56))):
        tensors = captured(parts, noise(f"input/{name}", shape))
        cases |= {f"{name}/{key}": value for key, value in tensors.items()}
    np.savez(tmp_path / "reference.npz", **cases)
    return tmp_path / "reference.npz"


def test_tensors_of_pytorch_pass(tmp_path):
    """Of the real tiny; one case, to compile once."""
    tensors = golden.load("segret_tiny")
    one = {key: value for key, value in tensors.items() if key.startswith("1/")}
    np.savez(tmp_path / "reference.npz", **one)
    _, *trees = abstract(MODEL, 150)
    variables = tuple(golden.filled(tree) for tree in trees)
    certificate = certify(MODEL, 150, variables, reference=tmp_path / "reference.npz")
    assert certificate["verdict"] == "pass"
    assert certificate["starts_in"] == []
    comparison = certificate["comparisons"]["float32, case 1"]
    assert list(comparison["errors"]) == list(STAGES)
    assert all(1e-8 < e["rms"] < e["largest"] < 1e-5 for e in comparison["errors"].values())
    assert comparison["argmax"] == {"equal": 468, "of": 468}


# fmt: off
WRONG: list[tuple[str, Callable, str]] = [
    ("encoder/stem/convs/0/bias", lambda x: x + 0.01, "c1"),
    ("encoder/stages/0/0/retention/q/kernel", np.transpose, "c1"),
    ("encoder/stages/1/0/retention/lepe/kernel", lambda x: x.swapaxes(0, 1), "c2"),
    ("encoder/downsamples/1/norm/scale", lambda x: x[::-1], "c3"),
    ("encoder/stages/3/0/retention/out/kernel", np.transpose, "c4"),
    ("encoder/stages/3/0/gamma2", np.zeros_like, "c4"),
    ("decoder/projections/3/linear/kernel", np.transpose, "logits"),
    ("decoder/classify/bias", lambda x: x * np.nan, "logits"),
]
SEGMAN_WRONG: list[tuple[str, Callable, str]] = [
    ("encoder/stages/0/0/mixer/neighborhood_bias", lambda x: x.swapaxes(1, 2), "c1"),
    ("encoder/stages/1/0/mixer/scan/a_log", lambda x: x[::-1], "c2"),
    ("encoder/downsamples/1/norm/scale", lambda x: x[::-1], "c3"),
    ("encoder/stages/3/0/mixer/global_bias", lambda x: x.swapaxes(1, 2), "c4"),
    ("decoder/collect1/conv/kernel", lambda x: x.swapaxes(0, 1), "logits"),
]
# fmt: on


def assert_located(
    model: ModelConfig, bundle: ModelBundle, reference: Path, wrong: list[tuple[str, Callable, str]]
) -> None:
    """Spoil one tensor after the other; the certificate must name its stage."""
    _, params, batch_stats = bundle
    for path, spoil, stage in wrong:
        keys: list[Any] = [int(k) if k.isdigit() else k for k in path.split("/")]
        module = reduce(lambda tree, key: tree[key], keys[:-1], params)
        right = module[keys[-1]]
        module[keys[-1]] = jnp.asarray(spoil(np.asarray(right)))
        assert module[keys[-1]].shape == right.shape, path
        certificate = certify(model, NUM_CLASSES, (params, batch_stats), reference=reference)
        assert (certificate["verdict"], certificate["starts_in"]) == ("fail", [stage]), path
        module[keys[-1]] = right
    certificate = certify(model, NUM_CLASSES, (params, batch_stats), reference=reference)
    assert certificate["verdict"] == "pass"


def test_wrong_tensor_fails_and_is_located_in_its_stage(reference):
    assert_located(MODEL, random_model(MODEL, NUM_CLASSES), reference, WRONG)


@pytest.mark.slow
def test_wrong_tensor_of_segman_is_located_in_its_stage(mini, tmp_path):
    model = segman(matmul_precision="highest")
    bundle = random_model(model, NUM_CLASSES)
    np.savez(tmp_path / "a.npz", **captured(bundle, noise("input", (1, 3, 224, 224))))
    assert_located(model, bundle, tmp_path / "a.npz", SEGMAN_WRONG)


@pytest.mark.parametrize(
    ("held", "suspects"),
    [
        (["logits"], list(STAGES)),
        (["c1", "logits"], ["c2", "c3", "c4", "logits"]),
        (["c3", "logits"], ["c1", "c2", "c3"]),
        (["c1", "c3", "logits"], ["c2", "c3"]),
    ],
)
def test_stages_missing_in_the_reference_remain_suspects(reference, tmp_path, held, suspects):
    _, params, batch_stats = random_model(MODEL, NUM_CLASSES)
    q = params["encoder"]["stages"][1][0]["retention"]["q"]
    q["kernel"] = q["kernel"].T
    with np.load(reference) as stored:
        part = {k: v for k, v in stored.items() if k.rpartition("/")[2] in ("input", *held)}
    np.savez(tmp_path / "part.npz", **part)
    variables = params, batch_stats
    certificate = certify(MODEL, NUM_CLASSES, variables, reference=tmp_path / "part.npz")
    assert certificate["starts_in"] == suspects
    text = certificates.to_text(certificate)
    assert all(f"{stage}: {STAGES[stage]}" in text for stage in suspects)
    assert f"a reference with {', '.join(suspects[:-1])} would tell" in text


def test_out_must_not_be_the_markdown_file(tmp_path):
    with pytest.raises(InputError, match=r"certificate\.md: give a name that ends in \.json"):
        verify.main([str(tmp_path), "--out", str(tmp_path / "certificate.md")])


def test_the_command_prints_and_writes_the_certificate(reference, tmp_path, capsys):
    saved_model(tmp_path / "right", ModelConfig(), NUM_CLASSES)
    saved_model(tmp_path / "wrong", ModelConfig(), NUM_CLASSES, seed=2)
    out = tmp_path / "certificates" / "right.json"
    common = ["--reference", str(reference)]
    with pytest.raises(SystemExit, match="0"):
        verify.main([str(tmp_path / "right"), *common, "--out", str(out)])
    printed = capsys.readouterr().out
    assert printed.startswith("# PASS: segret_tiny, 5 classes, against tensors captured from Py")
    assert out.with_suffix(".md").read_text() == printed
    certificate = json.loads(out.read_text())
    assert certificate["matmul_precision"] == "highest"
    for key in ("weights", "reference", "code"):
        assert re.fullmatch("[0-9a-f]{64}", certificate[key])
    argmax = certificate["comparisons"]["float32, case 0"]["argmax"]
    assert argmax == {"equal": 256, "of": 256}

    asked = "--config.model.matmul_precision=high"
    with pytest.raises(SystemExit, match="1"):
        verify.main([str(tmp_path / "wrong"), *common, asked])
    printed = capsys.readouterr().out
    assert printed.startswith("# FAIL")
    assert "It goes wrong first in c1: the stem or stage 1" in printed
    assert "- matmul precision: high\n" in printed


def test_default_reference_is_a_float64_forward(mini, monkeypatch):
    """The drift is rounding: 2⁻²⁴ and 2⁻⁹ times what a few dozen operations make of it."""
    monkeypatch.setattr(certificates, "TEST_SIZE", (40, 56))
    variables = random_model(MODEL, NUM_CLASSES)[1:]
    certificate = certify(MODEL, NUM_CLASSES, variables)
    assert certificate["verdict"] == "pass"
    assert certificate["reference"] is None
    errors = {name: c["errors"] for name, c in certificate["comparisons"].items()}
    assert list(errors) == ["float32", "bfloat16"]
    for stage in STAGES:
        assert 2**-26 < errors["float32"][stage]["rms"] < 2**-19
        assert 2**-11 < errors["bfloat16"][stage]["rms"] < 2**-4
    assert jnp.asarray(0.5).dtype == jnp.float32  # float64 is off again


COMPLETE = {"rotary": True, "ffn_conv": True, "token_head": True}


@pytest.mark.parametrize("task", ["segmentation", "classification"])
@pytest.mark.parametrize(
    "settings",
    [segret(max_scores=2**25, **COMPLETE), segret(max_scores=64, **COMPLETE), segman()],
    ids=["whole", "blocked", "segman"],
)
def test_the_float64_forward_rounds_nothing_to_float32(mini, task, settings):
    model = replace(settings, task=task, dtype="float64")
    size = map(FAMILIES[model.family].admissible, (40, 56))
    with jax.enable_x64(True):
        graph, *trees = abstract(model, NUM_CLASSES)
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64),
            (trees, jax.ShapeDtypeStruct((1, *size, 3), jnp.float64)),
        )
        traced = jax.make_jaxpr(lambda v, x: nnx.merge(graph, *v)(x))(*arguments)
    floats = re.findall(r":(f\d+|bf16)\[[^]]*\](?:<[^>]*>)? = (\w+)", str(traced))
    assert len(floats) > 300
    # Positions for the rotation are whole numbers: exact.
    assert {name for dtype, name in floats if dtype != "f64"} <= {"iota", "reshape"}


def test_errors_are_relative_to_the_rms():
    expected = {"logits": np.array([[3.0, -4.0, 0.0]])}
    found = compare({"logits": np.array([[3.0, -4.0, 0.5]])}, expected)
    rms = np.sqrt(25 / 3)
    assert found["errors"]["logits"]["largest"] == pytest.approx(0.5 / rms)
    assert found["errors"]["logits"]["rms"] == pytest.approx(0.5 / np.sqrt(3) / rms)
    assert found["argmax"] == {"equal": 1, "of": 1}


def test_a_classifier_is_compared_by_its_logits(mini, tmp_path):
    model = segret(task="classification", rotary=True, ffn_conv=True, token_head=True)
    parts = random_model(model, 7)
    image = noise("input/0", (2, 3, 64, 64))
    logits = model_outputs(parts, image.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "reference.npz", input=image, logits=logits)
    certificate = certify(model, 7, parts[1:], reference=tmp_path / "reference.npz")
    assert certificate["verdict"] == "pass"
    comparison = certificate["comparisons"]["float32"]
    assert list(comparison["errors"]) == ["logits"]
    assert comparison["argmax"] == {"equal": 2, "of": 2}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"input": np.zeros((1, 3, 8, 8))}, "no 'logits'"),
        ({"0/input": np.zeros((1, 3, 8, 8)), "0/C1": np.zeros(1)}, "the unknown tensor 'C1'"),
        ({"input": np.zeros((1, 8, 8, 3)), "logits": np.zeros(1)}, "input is (1, 8, 8, 3)"),
        ({"input": np.array([None])}, "cannot be read as .npz"),
        ({}, "holds nothing"),
        ({"input": np.zeros((1, 3, 8, 8)), "logits": np.zeros(5)}, "logits is (5,)"),
        (
            {"input": np.zeros((1, 3, 8, 8)), "logits": np.zeros((1, 5)), "c1": np.zeros((1, 5))},
            "c1 is (1, 5)",
        ),
        ({"0/input_shape": np.array([[1, 3, 8, 8]]), "0/logits": np.zeros((1, 5))}, "input_shape"),
        ({"0/input_shape": np.array([1, 3, -8, 8]), "0/logits": np.zeros((1, 5))}, "input_shape"),
        ({"0/input_shape": np.array([1, 3, 2**40, 8]), "0/logits": np.zeros((1, 5))}, "[1, 3, 109"),
        ({"0/input_shape": np.array([1, 3, np.nan, 8]), "0/logits": np.zeros((1, 5))}, "nan"),
        ({"input": np.zeros((1, 3, 8, 8)), "logits": np.array(["a"])}, "logits holds no numbers"),
        ({"input": np.zeros((0, 3, 8, 8)), "logits": np.zeros((0, 5))}, "input holds no numbers"),
    ],
)
def test_reference_with_other_tensors_is_rejected(tmp_path, tensors, message):
    np.savez(tmp_path / "reference.npz", **tensors)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_reference(tmp_path / "reference.npz", STAGES)
    form = "it needs `input` [b, 3, H, W] and `logits`, and may hold c1, c2, c3, c4; of several"
    assert form in str(error.value)
    with pytest.raises(InputError, match=r"`logits`; of several cases"):
        read_reference(tmp_path / "reference.npz", ["logits"])


def test_missing_reference_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.npz cannot be read .*No such file"):
        read_reference(tmp_path / "nothing.npz", STAGES)


def test_certificate_with_nan_is_strict_json(mini, tmp_path):
    saved_model(tmp_path / "weights", MODEL, NUM_CLASSES)
    image = noise("input/0", (1, 3, 32, 32))
    tensors = captured(random_model(MODEL, NUM_CLASSES), image)
    tensors["c2"] = np.where(tensors["c2"] == tensors["c2"].max(), np.nan, tensors["c2"])
    np.savez(tmp_path / "reference.npz", **tensors)
    out = tmp_path / "certificate.json"
    options = ["--reference", str(tmp_path / "reference.npz"), "--out", str(out)]
    with pytest.raises(SystemExit, match="1"):
        verify.main([str(tmp_path / "weights"), *options])
    certificate = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert certificate["starts_in"] == ["c2"]
    assert certificate["comparisons"]["float32"]["errors"]["c2"]["largest"] == "nan"


def test_the_input_has_a_size_that_the_family_admits(monkeypatch):
    shapes = []

    def record(_: str, shape: tuple[int, ...]) -> None:
        shapes.append(shape)
        raise InputError("enough")

    monkeypatch.setattr(certificates, "noise", record)
    for options in ({}, {"multiple_of": 32, "min_side": 193}):
        monkeypatch.setitem(FAMILIES, "segret", replace(FAMILY, **options))
        with pytest.raises(InputError, match="enough"):
            certify(MODEL, NUM_CLASSES, ())
    assert shapes == [(1, 3, 136, 200), (1, 3, 224, 224)]


def test_unwritable_out_is_rejected_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write --out .*file/c\.json: "):
        verify.main([str(tmp_path), "--out", str(tmp_path / "file" / "c.json")])


def test_truncated_reference_is_rejected(tmp_path):
    file = tmp_path / "reference.npz"
    np.savez(file, input=np.zeros((1, 3, 8, 8)), logits=np.zeros((1, 5, 2, 2)))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        read_reference(file, STAGES)


def test_reference_of_other_classes_is_rejected(reference):
    variables = random_model(MODEL, NUM_CLASSES + 1)[1:]
    with pytest.raises(InputError, match=r"logits of the reference has the shape \(1, 16, 16, 5\)"):
        certify(MODEL, NUM_CLASSES + 1, variables, reference=reference)
