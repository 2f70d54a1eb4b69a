#!/usr/bin/env bash
# One run over several machines without a scheduler, by Open MPI's mpirun (4; with 5, JAX
# needs mpi4py).
#
#   launch/multihost.sh node1:8,node2:8 --config configs/ped_pneumonia.py \
#       --data.root DIR --train.batch_size 256 --workdir SHARED/runs/large
#
# HOST:N is a machine and its GPUs, a process each; the folder of the run must be on a
# file system of all machines. In Kubernetes, have an indexed Job start
# `python -m hapre_jax.train --train.distributed true ...` instead; JAX's documentation
# of `jax.distributed.initialize` says what its pods need.
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
hosts=$1
shift
# Not bound to a core each, which Open MPI would do: films are read by several threads.
mpirun --host "$hosts" --bind-to none -x PATH python -m hapre_jax.train --train.distributed true "$@"
