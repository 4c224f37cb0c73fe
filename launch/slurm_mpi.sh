#!/usr/bin/env bash
#SBATCH --job-name=pbd
#SBATCH --ntasks=4
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Runs pbd under Slurm, one MPI rank per task. Submit it from the checkout; Slurm's flags go before the script:
#
#   sbatch --ntasks=16 --gpus-per-task=1 --time=08:00:00 launch/slurm_mpi.sh --teacher my_model.keras --dataset my_data.npz
#
# Two minutes before the time limit, pbd stops cleanly (exit code 75). With PBD_REQUEUE=1 the job is then queued again
# and resumes the run. To continue the run of another job, give its --run-dir (default: runs/slurm-JOBID).
# Environment: PBD_RUN_DIR (used without --run-dir), PBD_REQUEUE, PBD_PYTHON,
# PBD_MPIRUN, PBD_HOME (the checkout, if the job is submitted from elsewhere).
set -euo pipefail
home=${PBD_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}} # Slurm runs a copy of this file
# shellcheck source=slurm.sh
source "$home/launch/slurm.sh"

run_or_requeue "$mpirun" -n "$SLURM_NTASKS" "$python" -m pbd.run "$@"
