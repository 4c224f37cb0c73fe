#!/usr/bin/env bash
#SBATCH --job-name=pbd-dask
#SBATCH --ntasks=4
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Runs pbd under Slurm on Dask: scheduler and job on the first node, one worker per task. If a worker is lost, only the
# group of layers that it was training is lost. Submit it from the checkout, whose file system the nodes share; Slurm's
# flags go before the script:
#
#   sbatch --ntasks=16 --gpus-per-task=1 --time=08:00:00 launch/slurm_dask.sh --teacher my_model.keras --dataset my_data.npz
#
# Two minutes before the time limit, pbd stops cleanly (exit code 75). With PBD_REQUEUE=1 the job is then queued again
# and resumes the run. To continue the run of another job, give its --run-dir (default: runs/slurm-JOBID).
# Environment: PBD_RUN_DIR (used without --run-dir), PBD_REQUEUE, PBD_PYTHON,
# PBD_SHARED (a folder that all nodes share, for the certificates; default: here), PBD_INTERFACE (ib0, …), PBD_HOME (the
# checkout, if the job is submitted from elsewhere).
set -euo pipefail
home=${PBD_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}} # Slurm runs a copy of this file
# shellcheck source=dask.sh
source "$home/launch/dask.sh"
# shellcheck source=slurm.sh
source "$home/launch/slurm.sh"

private=$(mktemp -d "${PBD_SHARED:-$PWD}/.pbd-dask-XXXXXXXX")
trap 'stop_children; rm -rf "$private"' EXIT
trap 'exit 75' INT TERM USR1
start_scheduler "$private"
start srun "$python" -m dask worker --nthreads 1 --memory-limit 0 --dashboard-address 127.0.0.1:0 --death-timeout 60 \
    ${PBD_INTERFACE:+--interface "$PBD_INTERFACE"} --scheduler-file "$private/scheduler.json"
run_or_requeue "$python" -m pbd.run --executor dask --dask-address "$private/scheduler.json" --workers "$SLURM_NTASKS" "$@"
