#!/usr/bin/env bash
# One run over all GPUs of several machines of a Slurm cluster.
#
#   sbatch --nodes 2 launch/slurm.sh --config configs/ped_pneumonia.py --data.root DIR \
#       --train.batch_size 256 --workdir SHARED/runs/large
#
# The folder of the run must be on a file system of all machines. Stopped, the processes
# save after the next step that is logged (`--train.log_every`): five minutes before its
# time is over, the job is told to. Given again, the same command goes on from there. JAX
# finds the machines by Slurm's own variables; there has to be a process a GPU.
#SBATCH --job-name=hapre_jax
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log
set -euo pipefail
# Since Slurm 22.05 srun does not take this over from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-8}
srun python -m hapre_jax.train --train.distributed true "$@"
