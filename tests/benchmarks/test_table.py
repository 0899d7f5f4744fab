"""The results as Markdown."""

from benchmarks.gpu.table import table

FACTS = {"device": "H100", "date": "2026-12-01", "commit": "abc1234", "jax": "0.11.2",
         "platform": "PJRT CUDA", "cores": 16, "python": "3.12.3"}  # fmt: skip


def speed(figure: str, ms: float, **more: object) -> dict:
    times = {"ms": ms, "ms_min": ms, "ms_max": ms, "images_per_second": 16e3 / ms}
    return {"figure": figure, **times, "compile_seconds": 60.0, **FACTS, **more}


def floors(ms: float, ratio: float, **more: float) -> dict:
    times = {"ms": ms, "bytes_floor_ms": 0.01, "mult_adds_floor_ms": 0.05, **more}
    return {**times, "exponentials_floor_ms": 0.02, "over_largest_floor": ratio}


LINES = [
    {"figure": "peaks", "bf16_tflops": 800.0, "tf32_tflops": 400.0, "copy_gb_per_second": 3000.0,
     **FACTS},
    speed("train/segman_tiny/ours", 50.0, tflops=90.0, memory_gb=7.0),
    speed("train/segret_base/ours", 100.0, tflops=200.0, memory_gb=20.0),
    speed("train/segret_tiny/ours", 60.0, tflops=100.0, memory_gb=9.0),
    speed("train/segret_tiny/ours", 40.0, tflops=120.0, memory_gb=8.0),
    speed("train/segret_tiny/torch.compile", 60.0, memory_gb=10.0, torch="2.11.0"),
    {"figure": "train/segret_large/ours", "error": "no memory", **FACTS},
    {"figure": "parts/segret_tiny", "parts_ms": {"loss": 5.0, "FFN": 15.0}, **FACTS,
     "kernels": [{"name": "gemm", "part": "FFN", "ms": 9.0, "calls": 28.0}]},
    speed("inference/segret_tiny/ours/512x512, batch 1", 4.0, tflops=80.0, memory_gb=0.5),
    {"figure": "goldens/segret_tiny", "worst": 3e-6, "ok": True, **FACTS},
    {"figure": "pytest/test_device", "passed": 11, "failed": 1, "skipped": 0, "errors": 0,
     "ok": False},
    {"figure": "kernels/scan/segman_tiny stage 1", "formulas_ms": 0.3, "errors": {"q": 1e-6},
     "triton_calls": 3, "ok": True, **FACTS,
     "passes": {"forward": floors(0.1, 2.0),
                "forward and backward": floors(0.4, 2.64, kernels_ms=0.3)}},
    speed("train/segret_toy/ours", 1.0, dry_run=True),
]  # fmt: skip


def test_every_figure_is_in_it_with_machine_versions_date_and_commit():
    text = table(LINES)
    assert text.startswith("# H100, 2026-12-01\n")
    assert "Commit abc1234; 16 cores, Python 3.12.3, jax 0.11.2 (PJRT CUDA), PyTorch 2.11.0" in text
    assert "bfloat16 product 800 TFLOP/s, TF32 product 400 TFLOP/s, copy 3000 GB/s" in text
    for row in (
        "| segret_tiny | segret_jax | 40.0 (40.0, 40.0) | 400 | 15.0% | 8.00 | 60 |  |",
        "| segret_tiny | original, `torch.compile` | 60.0 (60.0, 60.0) | 267 | 10.0% | 10.00 |",
        "| segret_base | segret_jax | 100.0 (100.0, 100.0) | 160 | 25.0% | 20.00 | 60 |  |",
        "| FFN | 15.00 |", "| all | 20.00 |", "| segret_tiny | `gemm` | FFN | 9.00 | 28 |",
        "| goldens/segret_tiny | 3.0e-06 of the RMS at most | right |",
        "| `pytest -m gpu`, test_device | 11 passed, 1 failed, 0 skipped, 0 errors | **wrong** |",
        "| scan/segman_tiny stage 1 | 0.100 | 0.300 | 2.00 (mult-adds) | 2.64 (mult-adds) "
        "| 0.30 | 1.0e-06 | kernels | right |",
        "| segret_tiny, 512x512, batch 1 | segret_jax | 4.0 (4.0, 4.0) | 4000 | 10.0% | 0.50 |  |",
    ):  # fmt: skip
        assert row in text
    rows = [text.index(f"| {name} | segret_jax") for name in ("segret_tiny", "segret_base",
                                                              "segman_tiny")]  # fmt: skip
    assert rows == sorted(rows)
    assert "toy" not in text
    assert "| segret_large |" not in text
    assert (
        "## Failed\n\n| figure | error |\n| --- | --- |\n| train/segret_large/ours | no memory |"
        in text
    )


def test_programs_from_the_cache_are_marked_and_old_gpus_have_no_tf32():
    peaks = {key: value for key, value in LINES[0].items() if key != "tf32_tflops"}
    text = table(
        [peaks, speed("train/segret_tiny/ours", 40.0, tflops=120.0, memory_gb=8.0, cached=True)]
    )
    assert "| 8.00 | 60 (cached) |  |" in text
    assert "TF32 product none, copy 3000 GB/s" in text


def test_a_table_of_failures_names_the_machine():
    assert table([LINES[5]]).startswith("# H100, 2026-12-01\n")


def test_what_is_not_there_has_no_section():
    assert "##" not in table(LINES[:1])
    assert table(LINES[-1:]).count("Dry run: tiny sizes, no measurement.") == 1
