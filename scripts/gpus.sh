#!/usr/bin/env bash
# Trains on all GPUs of one machine until the run is finished, through stops and requeues:
#
#     scripts/gpus.sh runs/ade_tiny --config configs/ade_tiny.py --config.data.root=DIR
#
# One process drives all GPUs; the config's batch is split over them. Needs, once:
#
#     .venv/bin/pip install "jax[cuda13]==0.10.2"
#
# Run here on CPU devices only; on GPUs it has not been run yet.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "usage: scripts/gpus.sh WORKDIR --config FILE [--config.KEY=VALUE ...]" >&2; exit 2; }
workdir=$1
shift

# SIGTERM and Ctrl-C go to training, which saves and ends with status 0; then do not start again.
stopped=0
trap 'stopped=1; kill -TERM "$training" 2>/dev/null || true' TERM INT
until grep -qsx finished "$workdir/status"; do
  .venv/bin/python train.py --workdir "$workdir" "$@" &
  training=$!
  # An interrupted wait returns at once: wait again, for training itself.
  while kill -0 "$training" 2>/dev/null; do wait "$training" && status=0 || status=$?; done
  [ "$stopped" = 0 ] || exit "$status"
  [ "$status" = 0 ] || exit "$status"
done
