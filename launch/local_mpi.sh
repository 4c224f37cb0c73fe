#!/usr/bin/env bash
# Runs pbd with N MPI workers on this machine.
#
#   launch/local_mpi.sh N [pbd flags]
#   launch/local_mpi.sh 4 --teacher my_model.keras --dataset my_data.npz
#
# Environment: PBD_PYTHON (default: the checkout's .venv, else python3), PBD_MPIRUN.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "$0" "$@"

export PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe} # Open MPI
exec "$mpirun" -n "$1" "$python" -m pbd.run "${@:2}"
