# shellcheck shell=bash
# What the two Slurm scripts share; sourced, not run. Outside a job they only say how to submit them.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ -n ${SLURM_JOB_ID:-} ]] || { begin "$0" "$@" && begin "$0"; }

run_dir=${PBD_RUN_DIR:-runs/slurm-$SLURM_JOB_ID}

# run_or_requeue COMMAND...: run pbd in this job's run directory, go on with the run that is there already, and put the
# job back into the queue where it was stopped (75) and PBD_REQUEUE=1 asks for it.
run_or_requeue() {
    local code=0 resume=()
    [[ ! -f $run_dir/run.json ]] || resume=(--resume)
    run_job "$@" --run-dir "$run_dir" "${resume[@]}" || code=$?
    if ((code == 75)) && [[ ${PBD_REQUEUE:-0} == 1 ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$code"
}
