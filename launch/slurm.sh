#!/usr/bin/env bash
# One run over all GPUs of several machines of a Slurm cluster.
#
#   sbatch --nodes 2 launch/slurm.sh --config configs/ped_pneumonia.py --data.root DIR \
#       --train.batch_size 256 --workdir SHARED/runs/large
#
# The folder of the run must be on a file system of all machines. Given again, the same
# command goes on where the job ended. JAX finds the machines by Slurm's own variables;
# there has to be a process a GPU.
#SBATCH --job-name=hapre_jax
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail
srun python -m hapre_jax.train --train.distributed true "$@"
