"""Traces: one that jax.profiler writes on CPU, and one in the form that it has on a GPU."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax
from jax.profiler import ProfileData

from benchmarks import trace
from segret_jax.config import ModelConfig, choose_family
from segret_jax.models.factory import abstract
from segret_jax.models.families import FAMILIES


def test_time_is_that_of_the_innermost_part():
    @jax.jit
    def run(x):
        with jax.named_scope("encoder"), jax.named_scope("stage2"), jax.named_scope("retention"):
            x = x @ x
            with jax.named_scope("lepe"):
                x = jnp.sin(x).sum(0)
        with jax.named_scope("decoder"):
            return lax.fori_loop(0, 3, lambda _, y: y * 2, x)

    x = jnp.ones((200, 200))
    compiled = run.lower(x).compile()
    text = compiled.as_text()
    assert {"retention 2", "depthwise", "decoder"} <= set(trace.parts_of(text).values())
    found = trace.profile(lambda: compiled(x), text, repeats=2)
    assert {"retention 2", "decoder"} <= set(found.parts)
    assert sum(found.shares().values()) == pytest.approx(1)
    assert sum(kernel.seconds for kernel in found.kernels) == pytest.approx(
        sum(found.parts.values())
    )
    products = [kernel for kernel in found.kernels if kernel.part == "retention 2"]
    assert sum(kernel.calls for kernel in products) >= 1


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        ("jit(step)/transpose(jvp(encoder))/stage3/block7/retention/dot_general", "retention 3"),
        ("jit(step)/jvp(encoder)/stage1/block0/retention/norm/sub", "norms"),
        ("jit(step)/jvp(encoder)/stage1/block0/ffn/checkpoint/erf", "FFN"),
        ("jit(step)/jvp(encoder)/stem/conv_general_dilated", "stem"),
        ("jit(step)/jvp(encoder)/stage2/block0/mixer/neighborhood/x", "neighborhood attention 2"),
        ("jit(step)/transpose(jvp(encoder))/stage3/block1/mixer/scan/mul", "scan 3"),
        ("jit(step)/jvp(encoder)/stage1/block0/mixer/dot_general", "projections"),
        ("jit(step)/jvp(encoder)/stage1/block0/pos2/mul", "depthwise"),
        ("jit(step)/optimizer/mul", "optimizer"),
        ("jit(step)/decoder_of_something_else/mul", "other"),
        ("", "other"),
    ],
)
def test_a_part_is_named_by_the_scopes(op_name, part):
    assert trace.part_of(op_name) == part


OF_BOTH = {"stem", "depthwise", "FFN", "norms", "downsample", "decoder"}
OF_STAGES = {
    "segret": {f"retention {stage}" for stage in (1, 2, 3, 4)},
    "segman": {f"neighborhood attention {stage}" for stage in (1, 2, 3, 4)}
    | {f"scan {stage}" for stage in (1, 2, 3)} | {"global attention", "projections"},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_has_a_scope_for_every_part(mini, family):
    """Of a forward pass: all but the loss and the optimizer, which training has."""
    model = ModelConfig()
    choose_family(model, family)
    graph, *variables = abstract(model, 5)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    lowered = jax.jit(lambda v, x: nnx.merge(graph, *v)(x)).lower(variables, image)
    text = lowered.as_text("hlo", debug_info=True)
    assert OF_BOTH | OF_STAGES[family] <= set(trace.parts_of(text).values())


def test_every_part_is_of_a_model_or_of_training():
    found = OF_BOTH | set().union(*OF_STAGES.values()) | {"loss", "optimizer"}
    assert set(trace.PARTS) == {part.rstrip(" 1234") for part in found}


ON_GPU = """
planes {
  name: "/device:GPU:0"
  lines { name: "Stream #13(Compute)"
    events { metadata_id: 1 duration_ps: 3000000 stats { metadata_id: 1 str_value: "fusion.1" } }
    events { metadata_id: 1 duration_ps: 5000000 stats { metadata_id: 1 str_value: "fusion.1" } }
    events { metadata_id: 2 duration_ps: 6000000 stats { metadata_id: 1 ref_value: 2 } }
    events { metadata_id: 3 duration_ps: 1000000 } }
  lines { name: "XLA Ops"
    events { metadata_id: 1 duration_ps: 9000000 stats { metadata_id: 1 str_value: "fusion.1" } } }
  event_metadata { key: 1 value { id: 1 name: "loop_fusion_1" } }
  event_metadata { key: 2 value { id: 2 name: "sm90_gemm" } }
  event_metadata { key: 3 value { id: 3 name: "MemcpyD2D" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "custom-call.4" } }
}
planes { name: "/host:CPU"
  lines { name: "python"
    events { metadata_id: 1 duration_ps: 7000000 stats { metadata_id: 1 str_value: "fusion.1" } } }
  event_metadata { key: 1 value { id: 1 name: "launch" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
}
"""


def test_on_a_gpu_the_streams_count_and_nothing_else():
    data = ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(ON_GPU))
    parts = {"fusion.1": "stem", "custom-call.4": "FFN"}
    found = trace.read(data, parts, repeats=2)
    assert found.parts == pytest.approx({"stem": 4e-6, "FFN": 3e-6, "other": 0.5e-6})
    assert list(found.parts) == ["stem", "FFN", "other"]
    assert [(k.name, k.part, k.calls) for k in found.kernels] == [
        ("loop_fusion_1", "stem", 1), ("sm90_gemm", "FFN", 0.5), ("MemcpyD2D", "other", 0.5)
    ]  # fmt: skip
