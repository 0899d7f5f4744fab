#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, called from your own machine:
#
#     REPOSITORY=https://… TPU=my-slice ZONE=us-east5-a scripts/tpu_pod.sh /mnt/shared/runs/ade_large \
#         --config ade_large --config.data.root=gs://my-bucket/ade20k_prepared
#
# The first argument is the working folder, the same on all hosts: a Filestore (NFS) mount. (In a
# bucket mounted with gcsfuse renaming a folder is not one act, unless the bucket has a hierarchical
# namespace: a kill could leave a checkpoint that is not whole.) Called again after a pre-emption, it goes on from the last
# checkpoint. Whether the run will fit, and what bounds it, tells segret aot beforehand.
#
# NOT RUN YET on a TPU: written after Google Cloud's and JAX's documentation; the step is compiled
# ahead of time for such slices (docs/scale.md), and several processes are tested on one machine.
set -euo pipefail
: "${TPU:?name of the TPU}" "${ZONE:?zone of the TPU}" "${REPOSITORY:?where to clone this code from}"
workdir=${1:?give the working folder first}
shift
on_all_hosts() { gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$1"; }

# Once for each slice: the code, and the environment with libtpu.
on_all_hosts "test -d segret_jax || git clone $REPOSITORY segret_jax"
on_all_hosts "cd segret_jax && python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo 'Python 3.11 or newer is needed: choose another image' >&2; exit 1; }"
on_all_hosts "cd segret_jax && python3 -m venv .venv &&
  .venv/bin/pip install --quiet -r requirements.txt -e . gcsfs 'jax[tpu]==0.10.2'"
arguments=$(printf ' %q' --processes auto --workdir "$workdir" "$@")
on_all_hosts "cd segret_jax && .venv/bin/segret train$arguments"
