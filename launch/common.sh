# shellcheck shell=bash
# Functions that the launch scripts share; sourced, not run.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PBD_PYTHON:-$here/../.venv/bin/python}
[[ -n ${PBD_PYTHON:-} || -x $python ]] || python=python3
mpirun=${PBD_MPIRUN:-$(dirname "$python")/mpirun} # the mpirun installed with this Python's mpi4py
[[ -n ${PBD_MPIRUN:-} || -x $mpirun ]] || mpirun=mpirun
children=()

# begin SCRIPT [ARGUMENT...]: if the first argument is --help or missing, print the comment at the top of SCRIPT and exit.
begin() {
    case ${2:-} in
        -h | --help) usage "$1" && exit 0 ;;
        '') usage "$1" >&2 && exit 2 ;;
    esac
}

usage() {
    sed -n -e '/^#[!S]/d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$1"
}

# run_job COMMAND...: run it, forward INT, TERM and USR1 to it, and return its exit code after it has ended.
run_job() {
    local code=0 signalled=
    job=
    forwarded=
    trap 'signalled=TERM; forward TERM' INT TERM
    trap 'signalled=USR1; forward USR1' USR1
    "$@" &
    job=$!
    [[ -z $signalled ]] || forward "$signalled"
    wait "$job" || code=$?
    while [[ -n $signalled ]]; do # a signal ends `wait`, but not necessarily the job
        signalled=
        code=0
        wait "$job" || code=$?
    done
    trap '' INT TERM USR1
    return "$code"
}

forward() {
    forwarded=$1
    kill -s "$1" "$job" 2>/dev/null || true
}

# was_terminated: whether the last signal that `run_job` forwarded was TERM.
was_terminated() {
    [[ $forwarded == TERM ]]
}

# start COMMAND...: run it beside this script, in a process group of its own, which Ctrl-C does not reach.
start() {
    set -m
    "$@" </dev/null &
    children+=($!)
    set +m
}

# stop_children: end what was started; whatever has not ended after ten seconds is killed.
stop_children() {
    local tries child
    for child in "${children[@]}"; do kill -- "-$child" 2>/dev/null || true; done
    for child in "${children[@]}"; do
        for ((tries = 0; tries < 40; tries++)); do
            kill -0 -- "-$child" 2>/dev/null || break
            sleep 0.25
        done
        kill -KILL -- "-$child" 2>/dev/null || true
    done
}
