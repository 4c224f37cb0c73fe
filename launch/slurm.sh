# shellcheck shell=bash
# Functions that the Slurm scripts share; sourced, not run. Outside a Slurm job the scripts only print their usage.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ -n ${SLURM_JOB_ID:-} ]] || { begin "$0" "$@" && begin "$0"; }

run_dir=${PBD_RUN_DIR:-runs/slurm-$SLURM_JOB_ID}
resume=()
others=()
while (($#)); do # the script's own arguments: `run_or_requeue` gives pbd these two flags
    case $1 in
        --run-dir=*) run_dir=${1#*=} ;;
        --run-dir) if (($# > 1)); then run_dir=$2 && shift; else others+=("$1"); fi ;;
        --resume) resume=(--resume) ;;
        *) others+=("$1") ;;
    esac
    shift
done
set -- "${others[@]}"

# run_or_requeue COMMAND...: run pbd in the run directory, and resume the run if there is one already. If it
# stopped (exit code 75) and PBD_REQUEUE is 1, queue the job again, except after TERM, with which `scancel` ends a job.
run_or_requeue() {
    local code=0
    [[ ! -f $run_dir/run.json ]] || resume=(--resume)
    run_job "$@" --run-dir "$run_dir" "${resume[@]}" || code=$?
    if ((code == 75)) && [[ ${PBD_REQUEUE:-0} == 1 ]] && ! was_terminated; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$code"
}
