"""From a PyTorch classifier's file to the first training step: each shared tensor, bit for bit.

Names and layouts are written out here once more: the converter's own table is under test.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from segret_jax.checkpoint.state import TrainState
from segret_jax.cli.convert import main as convert
from segret_jax.config import Config, DataConfig, EvalConfig, TrainConfig
from segret_jax.convert.exporting import write_tensors
from segret_jax.data.pipeline import class_table
from segret_jax.models.factory import build
from segret_jax.training import loop
from tests.convert.models import CLASSIFIER, random_tensors, tensors_of
from tests.settings import segman, segret

COMPLETE = {"rotary": True, "ffn_conv": True}
BLOCK = {
    "pos.conv": "pos", "retention_layer_norm": "norm1", "final_layer_norm": "norm2",
    "retention.q_proj": "retention/q", "retention.k_proj": "retention/k",
    "retention.v_proj": "retention/v", "retention.out_proj": "retention/out",
    "retention.lepe.conv": "retention/lepe",
    "ffn.fc1": "ffn/fc1", "ffn.dwconv.conv": "ffn/dwconv", "ffn.fc2": "ffn/fc2",
}  # fmt: skip
MODULES = {
    **{f"patch_embed.proj.{3 * i}": f"stem/convs/{i}" for i in range(4)},
    **{f"patch_embed.proj.{3 * i + 1}": f"stem/norms/{i}" for i in range(4)},
    **{f"layers.{s}.blocks.0": f"stages/{s}/0" for s in range(4)},  # of gamma_1 and gamma_2
    **{f"layers.{s}.blocks.0.{a}": f"stages/{s}/0/{b}" for s in range(4) for a, b in BLOCK.items()},
    **{f"layers.{s}.downsample.reduction": f"downsamples/{s}/conv" for s in range(3)},
    **{f"layers.{s}.downsample.norm": f"downsamples/{s}/norm" for s in range(3)},
}
LEAVES = {
    "bias": "bias", "running_mean": "mean", "running_var": "var", "gamma_1": "gamma1",
    "gamma_2": "gamma2",
}  # fmt: skip
LEFT_OUT = ("Relpos.angle", "Relpos.decay", "num_batches_tracked")


def encoder_of(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what an encoder with the tensors of a classifier's file must hold."""
    encoder = {}
    for name, tensor in tensors.items():
        if not name.startswith(("patch_embed.", "layers.")) or name.endswith(LEFT_OUT):
            continue
        module, _, leaf = name.rpartition(".")
        if leaf == "weight":
            leaf = "scale" if tensor.ndim == 1 else "kernel"
        if tensor.ndim == 4 and leaf != "kernel":
            tensor = tensor.ravel()  # [1, 1, 1, c]
        elif tensor.ndim == 4 and module.endswith(("pos.conv", "lepe.conv", "dwconv.conv")):
            tensor = np.moveaxis(tensor.squeeze(1), 0, 2)  # [c, 1, h, w] → [h, w, c]
        elif tensor.ndim == 4:
            tensor = np.einsum("oihw->hwio", tensor)
        elif tensor.ndim == 2:
            tensor = tensor.T
        encoder[f"encoder/{MODULES[module]}/{LEAVES.get(leaf, leaf)}"] = tensor
    return encoder


def by_name(*trees: Any) -> dict[str, np.ndarray]:
    leaves = [leaf for tree in trees for leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf)
        for path, leaf in leaves
    }


class BegunError(Exception):
    """The first step of a run was about to be made, from the state in `args`."""


def begin(state: TrainState, batch: Any) -> None:
    raise BegunError(state)


def first_state(config: Config, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> TrainState:
    """Return the state before the first step of a run."""
    monkeypatch.setattr(loop, "compile_ahead", lambda step, *args: begin(*args))
    with pytest.raises(BegunError) as begun:
        loop.train(config, workdir)
    (state,) = begun.value.args
    return state


@pytest.mark.usefixtures("mini")
@pytest.mark.parametrize("flavor", [{}, COMPLETE], ids=["plain", "complete"])
def test_the_first_step_has_the_exact_values_of_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flavor: dict[str, bool],
) -> None:
    tensors = random_tensors(10, **CLASSIFIER, token_head=True)
    write_tensors(tmp_path / "rmt.safetensors", tensors, {})
    convert([str(tmp_path / "rmt.safetensors"), str(tmp_path / "rmt")])
    capsys.readouterr()
    config = Config(
        init_from=str(tmp_path / "rmt"),
        model=segret(**flavor),
        data=DataConfig(crop=(32, 32), synthetic_size=(32, 32), resize_base=(32, 32)),
        train=TrainConfig(steps=1, batch_size=2),
    )
    state = first_state(config, tmp_path / "run", monkeypatch)
    found = by_name(state.params, state.batch_stats)

    _, *trees = build(config.model, class_table(config.data).num_classes, seed=config.train.seed)
    decoder = {name: leaf for name, leaf in by_name(*trees).items() if name.startswith("decoder/")}
    encoder = encoder_of(tensors)
    convolutions = {name for name in encoder if "/ffn/dwconv/" in name}
    assert len(convolutions) == 8
    assert found.keys() == decoder.keys() | encoder.keys() - (set() if flavor else convolutions)
    for name, leaf in found.items():
        expected = (decoder | encoder)[name]
        np.testing.assert_array_equal(leaf, expected, err_msg=name, strict=True)

    said = capsys.readouterr().out
    num_taken = len(found.keys() & encoder.keys())
    counts = f"{num_taken} of {len(found)} tensors; the others are initialized"
    assert f"started from the classifier {tmp_path / 'rmt'}: {counts}" in said
    lost = (
        "LEFT OUT of that classifier: the rotation of queries and keys and the FFN's convolutions"
    )
    assert (lost in said) == (not flavor)
    remedy = (
        "--config.model.settings.rotary=true --config.model.settings.ffn_conv=true would keep them"
    )
    assert (remedy in said) == (not flavor)


SEGMAN_BLOCK = {
    "cpe1": "pos1", "cpe2": "pos2", "norm1": "norm1", "norm2": "norm2", "layer_scale1": "scale1",
    "layer_scale2": "scale2", "mlp.fc1": "ffn/fc1", "mlp.dwconv": "ffn/dwconv",
    "mlp.fc2": "ffn/fc2", "token_mixer": "mixer", "token_mixer.qkv": "mixer/qkv",
    "token_mixer.lepe": "mixer/lepe", "token_mixer.proj": "mixer/out",
    "token_mixer.dwconv.0": "mixer/dwconv", "token_mixer.dwconv.1": "mixer/dwconv_norm",
    "token_mixer.ssm": "mixer/scan", "token_mixer.norm": "mixer/norm",
}  # fmt: skip
SEGMAN_MODULES = {
    **{f"patch_embed.{3 * i}": f"stem/convs/{i}" for i in range(4)},
    **{f"patch_embed.{3 * i + 1}": f"stem/norms/{i}" for i in range(4)},
    **{
        f"layers.{2 * s}.blocks.0.{theirs}": f"stages/{s}/0/{ours}"
        for s in range(4)
        for theirs, ours in SEGMAN_BLOCK.items()
    },
    **{f"layers.{2 * s + 1}.0": f"downsamples/{s}/conv" for s in range(3)},
    **{f"layers.{2 * s + 1}.1": f"downsamples/{s}/norm" for s in range(3)},
}
SEGMAN_LEAVES = {
    "bias": "bias", "running_mean": "mean", "running_var": "var", "x_proj_weight": "project",
    "dt_projs_weight": "dt_kernel", "dt_projs_bias": "dt_bias", "A_logs": "a_log", "Ds": "skip",
    "rpb.0": "neighborhood_bias", "rpb.1": "global_bias",
}  # fmt: skip


def segman_encoder_of(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what an encoder with the tensors of SegMAN's classifier must hold."""
    encoder = {}
    for name, tensor in tensors.items():
        if name.startswith("classifier.") or name.endswith(("rope.angle", "num_batches_tracked")):
            continue
        module, _, leaf = name.replace("rpb.", "rpb#").rpartition(".")
        leaf = leaf.replace("#", ".")
        if leaf == "weight":
            is_scale = tensor.ndim == 1 or "layer_scale" in module
            leaf, tensor = ("scale", tensor.ravel()) if is_scale else ("kernel", tensor)
        if leaf == "kernel" and module.endswith((".qkv", ".proj", ".fc1", ".fc2")):
            tensor = tensor[:, :, 0, 0].T
        elif leaf == "kernel":
            pattern = "cihw->hwc" if tensor.shape[1] == 1 else "oihw->hwio"
            tensor = np.einsum(pattern, tensor)
        elif leaf == "x_proj_weight":
            tensor = np.einsum("pcz->cp", tensor)
        elif leaf == "dt_projs_weight":
            tensor = np.einsum("kcr->krc", tensor)
        elif leaf in ("A_logs", "Ds"):
            tensor = tensor.reshape(4, -1)  # rows are direction-major
        encoder[f"encoder/{SEGMAN_MODULES[module]}/{SEGMAN_LEAVES.get(leaf, leaf)}"] = tensor
    return encoder


@pytest.mark.usefixtures("mini")
def test_segman_starts_from_its_whole_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = tensors_of(segman(task="classification"), 10)
    write_tensors(tmp_path / "imagenet.safetensors", tensors, {})
    convert([str(tmp_path / "imagenet.safetensors"), str(tmp_path / "imagenet")])
    config = Config(
        init_from=str(tmp_path / "imagenet"),
        model=segman(projection_channels=24),  # which no classifier has
        data=DataConfig(crop=(224, 224), synthetic_size=(224, 224), resize_base=(224, 224)),
        train=TrainConfig(steps=1, batch_size=2),
        eval=EvalConfig(window=(224, 224), multiple_of=32),
    )
    capsys.readouterr()
    state = first_state(config, tmp_path / "run", monkeypatch)
    found, encoder = by_name(state.params, state.batch_stats), segman_encoder_of(tensors)
    assert {name for name in found if name.startswith("encoder/")} == encoder.keys()
    for name, leaf in encoder.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name, strict=True)
    said = capsys.readouterr().out
    counts = f"{len(encoder)} of {len(found)} tensors; the others are initialized"
    assert f"started from the classifier {tmp_path / 'imagenet'}: {counts}" in said
    assert "LEFT OUT" not in said
