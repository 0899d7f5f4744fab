#!/usr/bin/env bash
# Trains on all GPUs of one machine, and starts again what was killed (out of memory, a crash):
#
#     scripts/gpus.sh runs/ade_tiny --config ade_tiny --config.data.root=DIR
#
# One process drives all GPUs; the config's batch is split over them. Needs, once:
#
#     .venv/bin/pip install -c requirements.txt -e ".[cuda]"
#
# Run here on CPU devices only; on GPUs it has not been run yet.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "usage: scripts/gpus.sh WORKDIR --config FILE [--config.KEY=VALUE ...]" >&2; exit 2; }
workdir=$1
shift

# Ctrl-C and SIGTERM are passed on: training saves and ends with status 0. Neither is a death to
# start again after, even if it came before training could heed it.
stopping='' training=''
trap 'stopping=1; [ -z "$training" ] || kill -TERM "$training" 2>/dev/null || true' INT TERM
for _ in {1..20}; do
  .venv/bin/segret train --workdir "$workdir" "$@" &
  training=$!
  [ -z "$stopping" ] || kill -TERM "$training" 2>/dev/null || true
  # An interrupted wait returns at once: wait again. The last one tells training's own status.
  while kill -0 "$training" 2>/dev/null; do wait "$training" || true; done
  status=0
  wait "$training" || status=$?
  # Finished, stopped, or an error to mend.
  [ -z "$stopping" ] && [ "$status" -gt 128 ] || exit "$status"
  echo "killed (status $status): starting again" >&2
done
exit "$status"
