#!/usr/bin/env bash
# Submits a run to Slurm, one MPI rank per task; run it from the checkout:
#
#   examples/slurm.sh model.keras data.npz /shared/runs/first
#
# Two minutes before its time limit the run stops with its work on disk; Slurm queues the job again, and it resumes.
set -euo pipefail
model=$1 data=$2
export PBD_RUN_DIR=$3 PBD_REQUEUE=1 # the run directory must be on storage that all nodes share
exec sbatch --ntasks=2 --time=01:00:00 launch/slurm_mpi.sh \
    --teacher "$model" --dataset "$data" --fine-tune-epochs 3
