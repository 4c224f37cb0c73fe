#!/usr/bin/env bash
# Runs pbd on this machine, with Dask workers that it starts by SSH on other machines with the same file system.
#
#   launch/dask_ssh.sh HOSTS [pbd flags]
#   launch/dask_ssh.sh node1,node2 --teacher my_model.keras --dataset my_data.npz --run-dir /shared/runs/first
#
# HOSTS is a list of names or USER@HOST separated by commas, or a file with one host per line. Environment:
#   PBD_WORKERS_PER_HOST  default 1; with GPUs, as many as a host has
#   PBD_PYTHON            the same path on every host (default: the checkout's .venv, else python3)
#   PBD_SHARED            a folder that all hosts share, for the certificates (default: the current folder)
#   PBD_INTERFACE         the network interface of this machine that the hosts reach (eth1, …), if it has several
#   PBD_SSH_CONFIG        a file for ssh -F: users, keys, ports, jump hosts
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dask.sh"
begin "$0" "$@"
read_hosts "$1"
each=${PBD_WORKERS_PER_HOST:-1}

private=$(mktemp -d "${PBD_SHARED:-$PWD}/.pbd-dask-XXXXXXXX")
trap 'stop_children; rm -rf "$private"' EXIT
trap 'exit 75' INT TERM USR1
start_scheduler "$private"
mapfile -t settings < <(dask_settings "$private/tls")
worker=(env "${settings[@]}" "$python" -m dask worker --nworkers "$each" --nthreads 1 --memory-limit 0
    --dashboard-address 127.0.0.1:0 --death-timeout 60 --scheduler-file "$private/scheduler.json")
for host in "${hosts[@]}"; do
    start_at "$host" "cd ${PWD@Q} && exec ${worker[*]@Q}"
done
run_job "$python" -m pbd.run --executor dask --dask-address "$private/scheduler.json" \
    --workers $((${#hosts[@]} * each)) "${@:2}"
