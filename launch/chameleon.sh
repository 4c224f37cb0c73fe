#!/usr/bin/env bash
# Runs pbd on cloud machines (such as Chameleon), however they were provisioned: scheduler and job on the first host,
# Dask workers on all hosts, with TLS between them. The certificates are created here and copied to the hosts.
#
#   launch/chameleon.sh HOSTS [pbd flags]
#   launch/chameleon.sh cc@10.52.0.4,cc@10.52.0.5 --teacher my_model.keras --dataset my_data.npz
#
# HOSTS is a list of names separated by commas, or a file with one host per line. pbd must be installed on every host,
# every host must reach the first one under the name given here, and paths in the flags are paths on the hosts.
# Environment:
#   PBD_DIRECTORY         where the job runs: a folder that the hosts share (default: the home directory)
#   PBD_PYTHON            Python on the hosts (default: python3)
#   PBD_WORKERS_PER_HOST  default 1; with GPUs, as many as a host has
#   PBD_PORT              the scheduler's port (default: 8786)
#   PBD_SSH_CONFIG        a file for ssh -F: users, keys, ports, jump hosts
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dask.sh"
begin "$0" "$@"
read_hosts "$1"
first=${hosts[0]} each=${PBD_WORKERS_PER_HOST:-1} port=${PBD_PORT:-8786}
address=tls://${first#*@}:$port

# at NUMBER COMMAND: let host NUMBER's shell run COMMAND.
at() {
    "${ssh[@]}" "${hosts[$1]}" "${@:2}"
}

# python_at NUMBER MODULE...: print how host NUMBER's shell runs that Python module with the certificates.
python_at() {
    local settings words=("${PBD_PYTHON:-python3}" -m "${@:2}")
    mapfile -t settings < <(dask_settings "$remote-$1")
    echo "cd ${PBD_DIRECTORY:+"${PBD_DIRECTORY@Q}"} && echo \$\$ >$remote-$1/$2.pid && exec env ${settings[*]@Q} ${words[*]@Q}"
}

# forward SIGNAL: send it to the job on the first host, which then stops cleanly.
forward() {
    at 0 "kill -s $1 \$(cat $remote-0/pbd.run.pid)" || kill "$job"
}

forget_certificates() {
    local number
    for number in "${!hosts[@]}"; do at "$number" "rm -rf $remote-$number" || true; done
    rm -rf "$private"
}

private=$(mktemp -d)
remote=/tmp/pbd-$(openssl rand -hex 8)
trap 'stop_children; forget_certificates' EXIT
trap 'exit 75' INT TERM USR1
"$here/make_certificates.sh" "$private/tls"
for number in "${!hosts[@]}"; do # mkdir fails if the folder exists, so no other user can have prepared it
    at "$number" "umask 077 && mkdir $remote-$number"
    scp -q -p "${ssh_flags[@]}" "$private"/tls/*.pem "${hosts[number]}:$remote-$number/"
done
scheduler=(dask scheduler --protocol tls --port "$port" --dashboard-address 127.0.0.1:0
    --scheduler-file "$remote-0/scheduler.json")
worker=(dask worker --nworkers "$each" --nthreads 1 --memory-limit 0 --dashboard-address 127.0.0.1:0 --death-timeout 60)
job=(pbd.run --executor dask --dask-address "$address" --workers $((${#hosts[@]} * each)) "${@:2}")
start_at "$first" "$(python_at 0 "${scheduler[@]}")"
for number in "${!hosts[@]}"; do
    start_at "${hosts[number]}" "$(python_at "$number" "${worker[@]}" "$address")"
done
at 0 "for _ in \$(seq 60); do [ ! -s $remote-0/scheduler.json ] || exit 0; sleep 1; done; echo no scheduler; exit 69" >&2
run_job "${ssh[@]}" "$first" "$(python_at 0 "${job[@]}")"
