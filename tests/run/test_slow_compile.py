"""XLA's alarm about slow compilations stays out of standard error; all else passes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# As XLA of jaxlib 0.10.2 writes it.
ALARM = (
    "\n********************************\n[Compiling module jit_step] Very slow compile? If you "
    "want to file a bug, run with envvar XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results."
    "\n********************************\n"
)
FILE = "E1128 10:12:11.123456   77 slow_operation_alarm.cc"
PROGRAM = f"""
import os, sys, time
from pathlib import Path
from segret_jax.run import streams
from segret_jax.run.logger import RunLogger
streams.make_safe()
def write(text):
    os.write(2, text.encode())
    time.sleep(0.05)
with RunLogger(Path(sys.argv[1]), steps=3, start=0) as logger, logger.compiling("a while"):
    write("E1128 real error\\n")
    write({f"{FILE}:73] {ALARM}"!r})
    write({f"{FILE}:140] The operation took 2m31.5s{chr(10)}{ALARM}"!r} + "without an end")
    if sys.argv[2] == "crash":
        os.abort()
write(", after\\n")
"""


def errors_of(tmp_path: Path, end: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), end], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == (end == "return"), done.stderr
    return done.stderr


def test_the_alarm_is_dropped_and_all_else_passes(tmp_path):
    errors = errors_of(tmp_path, "return")
    assert "slow" not in errors
    assert "***" not in errors
    assert "compiling 0:00" in errors
    assert errors.index("E1128 real error\n") < errors.index("without an end")
    assert ", after\n" in errors


def test_nothing_is_lost_in_a_crash(tmp_path):
    errors = errors_of(tmp_path, "crash")
    assert "E1128 real error\n" in errors
    assert errors.rstrip().endswith("without an end")
