# shellcheck shell=bash
# Functions that the Dask scripts share; sourced, not run.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ssh_flags=(-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15 -o LogLevel=ERROR)
[[ -z ${PBD_SSH_CONFIG:-} ]] || ssh_flags+=(-F "$PBD_SSH_CONFIG")
ssh=(ssh "${ssh_flags[@]}")

# read_hosts LIST: fill `hosts` from a file with one host per line, or from names separated by commas.
read_hosts() {
    local names=$1
    [[ ! -f $1 ]] || names=$(sed 's/#.*//' "$1")
    IFS=$', \t\n' read -r -d '' -a hosts <<<"$names" || true
    ((${#hosts[@]})) || { echo "no host in $1" >&2 && exit 2; }
}

# dask_settings DIR: print the settings of Dask for a cluster with certificates in DIR, one NAME=VALUE per line.
dask_settings() {
    local part tls=DASK_DISTRIBUTED__COMM__TLS
    printf '%s\n' DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true "${tls}__CA_FILE=$1/ca.pem"
    for part in SCHEDULER WORKER CLIENT; do
        printf '%s\n' "${tls}__${part}__CERT=$1/cert.pem" "${tls}__${part}__KEY=$1/key.pem"
    done
    printf '%s\n' DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION=inf # for --scheduler work_stealing: queue nothing
    printf '%s\n' DASK_LOGGING__DISTRIBUTED=warning
}

# start_scheduler DIR: start it with new certificates in DIR/tls, and wait until DIR/scheduler.json has its address.
# The dashboard has no password, so it listens on the loopback address only.
start_scheduler() {
    local tries settings interface=(${PBD_INTERFACE:+--interface "$PBD_INTERFACE"})
    "$here/make_certificates.sh" "$1/tls"
    mapfile -t settings < <(dask_settings "$1/tls")
    export "${settings[@]}"
    start "$python" -m dask scheduler --protocol tls --port 0 "${interface[@]}" --dashboard-address 127.0.0.1:0 \
        --scheduler-file "$1/scheduler.json"
    for ((tries = 0; tries < 240; tries++)); do
        [[ ! -s $1/scheduler.json ]] || return 0
        kill -0 "${children[-1]}" 2>/dev/null || break
        sleep 0.25
    done
    echo "the Dask scheduler did not start: its messages are above" >&2
    exit 69
}

# start_at HOST COMMAND: `start` it in HOST's shell; with -tt it ends when this end of the connection does.
start_at() {
    start "${ssh[@]}" -tt "$1" "$2"
}
