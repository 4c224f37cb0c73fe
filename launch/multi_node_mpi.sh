#!/usr/bin/env bash
# Runs pbd with MPI workers on several machines, which share a file system and accept SSH connections from each other.
#
#   launch/multi_node_mpi.sh HOSTFILE [pbd flags]
#   launch/multi_node_mpi.sh hosts.txt --run-dir /shared/runs/first
#
# HOSTFILE has one host per line, with its number of workers: `node1:4` for MPICH, `node1 slots=4` for Open MPI.
# Environment: PBD_PYTHON (the same path on every host; default: the checkout's .venv, else python3), PBD_MPIRUN.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "$0" "$@"

# mpirun of Open MPI waits for a lost host: by default eight minutes, and without end once a rank has aborted the job.
export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-10}
export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-5}
export OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-4}

exec "$mpirun" -hostfile "$1" "$python" -m pbd.run "${@:2}"
