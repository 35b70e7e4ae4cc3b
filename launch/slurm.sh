#!/usr/bin/env bash
# Submits a run, or a sweep of runs, to SLURM: see `usage`.
set -euo pipefail

usage() {
  cat <<'END'
Submits a run, or a sweep of runs, to SLURM. Call it in the same environment again at any time: a job of the same
name that waits or runs is not submitted twice, and a run goes on from its last checkpoint.

    launch/slurm.sh [--dry_run] -- ARGS
    launch/slurm.sh [--dry_run] --sweep FILE [--sweep FILE]

ARGS are those of `python -m user_llm.main`. FILE has those of one run a line, quoted as for a shell, as
`python -m launch.local ... --write_commands` writes them; they become a job array. The runs of a second FILE start
when all of the first have ended. Relative paths, also in ARGS, start at the root of the repository.

Options:
  --dry_run     print the commands and the job's script, and run nothing
  --sweep FILE  submit the runs of FILE; once for every FILE

Variables:
  PARTITION      default: the cluster's
  ACCOUNT        default: yours
  TIME           limit of a job; three minutes before it the run saves a checkpoint. Default: 24:00:00
  NODES          of a run; default: 1
  GPUS_PER_NODE  of a run; one process runs a GPU. Default: 1
  CPUS_PER_TASK  of a process; default: 8
  VENV           virtual environment to run in; default: .venv
  JOB_NAME       default: made of --workdir, or of the first FILE
  LOGS           folder for what the jobs print; default: runs/slurm
  REQUEUE        1: a job that the time limit or another job stops goes back into the queue and resumes; so does one
                 whose folder, or dataset in the making, another process holds (exit status 75 of the run).
                 0: it stays stopped. Default: 1
sbatch's own variables (SBATCH_CONSTRAINT, SBATCH_QOS, SBATCH_MEM_PER_GPU, ...) work as well.

Exit status: 0 submitted or in the queue already, 1 without SLURM, 2 for a wrong command line. A job ends with that of
its run: 0 finished, 1 failed, 75 another process holds what it needs, 143 stopped; the same command goes on.
END
}

main() {
  local file sweeps=()
  dry_run=0
  while (($#)); do
    case $1 in
      -h | --help) usage && exit ;;
      --dry_run) dry_run=1 ;;
      --sweep) (($# > 1)) || wrong "--sweep: name its file" && sweeps+=("$2") && shift ;;
      --sweep=*) sweeps+=("${1#*=}") ;;
      --) shift && break ;;
      *) wrong "unknown argument $1: there are --dry_run, --sweep FILE and, behind --, those of the run" ;;
    esac
    shift
  done
  scripts=() counts=() # of each job or array: the commands, and how many
  if ((${#sweeps[@]})); then
    (($# == 0)) || wrong "the runs are those of --sweep; leave out what stands behind --"
    for file in "${sweeps[@]}"; do read_sweep "$file"; done
    ((${#scripts[@]})) || wrong "no run is named in ${sweeps[*]}"
  else
    (($#)) || wrong "name a run behind --, or --sweep FILE; --help explains them"
    scripts=("0) set -- $(quoted "$@");;") counts=(1)
  fi
  settings "${sweeps[0]:-$(workdir "$@")}"
  submit
}

workdir() { # of ARGS
  local arg
  for arg; do [[ $arg != --workdir=* ]] || echo "${arg#*=}"; done
}

read_sweep() { # adds to `scripts` and `counts`; nothing is submitted unless every file can be read
  local line words cases='' count=0 number=0
  [[ -f $1 ]] || wrong "--sweep $1: no such file"
  while IFS= read -r line || [[ $line ]]; do
    number=$((number + 1))
    [[ $line =~ [^[:space:]] ]] || continue
    # xargs splits as a shell does, but runs nothing that is written there.
    words=$(xargs printf '%s\n' <<< "$line" 2> /dev/null) || wrong "$1, line $number: a quote is not closed: $line"
    mapfile -t words <<< "$words"
    cases+="$count) set -- $(quoted "${words[@]}");;"$'\n'
    count=$((count + 1))
  done < "$1"
  ((count == 0)) || { scripts+=("$cases") && counts+=("$count"); }
}

settings() { # $1 names the job if JOB_NAME does not
  local name value
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  job=${JOB_NAME:-user-llm-$(printf %s "$1" | tr -c 'A-Za-z0-9._-' -)}
  [[ ${JOB_NAME:-}$1 ]] || wrong "name the folder of the run: -- --config=FILE --workdir=FOLDER"
  [[ $job =~ ^[A-Za-z0-9._-]+$ ]] || wrong "JOB_NAME=$job: expected letters, digits, dots, - and _"
  for name in NODES GPUS_PER_NODE CPUS_PER_TASK; do
    value=${!name:-1}
    [[ $value =~ ^[1-9][0-9]*$ ]] || wrong "$name=$value: expected a whole number of at least 1"
  done
  requeue=${REQUEUE:-1}
  [[ $requeue == [01] ]] || wrong "REQUEUE=$requeue: expected 0 or 1"
  logs=$(in_root "${LOGS:-runs/slurm}") python=$(in_root "${VENV:-.venv}")/bin/python
  [[ -x $python ]] || wrong "VENV: there is no $python: make a virtual environment (make demo makes .venv), or name one"
  # JAX gives a process under SLURM the one GPU of its number on the node. It must see them all to find that one:
  # no --gpus-per-task, which would hide the others.
  options=(
    --parsable --job-name="$job" --chdir="$root" --time="${TIME:-24:00:00}" --nodes="${NODES:-1}"
    --gpus-per-node="${GPUS_PER_NODE:-1}" --ntasks-per-node="${GPUS_PER_NODE:-1}"
    --cpus-per-task="${CPUS_PER_TASK:-8}" --signal=B:USR1@180 --open-mode=append
  )
  if ((requeue)); then options+=(--requeue); else options+=(--no-requeue); fi
  [[ -z ${PARTITION:-} ]] || options+=(--partition="$PARTITION")
  [[ -z ${ACCOUNT:-} ]] || options+=(--account="$ACCOUNT")
}

in_root() { if [[ $1 == /* ]]; then echo "$1"; else echo "$root/$1"; fi; }

submit() {
  local i previous='' queue=(squeue --noheader --user="$(id -un)" --name="$job" --format=%i) queued needed
  if ((dry_run)); then
    quoted "${queue[@]}" && echo
  else
    for needed in squeue sbatch; do
      command -v "$needed" > /dev/null || fail 1 "there is no SLURM here (no $needed): call this on a login node"
    done
    queued=$("${queue[@]}") # where this fails, nothing is submitted
    if [[ $queued ]]; then
      echo "$job is in the queue already, as ${queued//$'\n'/ }; JOB_NAME gives this one another name" >&2
      return
    fi
    mkdir -p "$logs" # without it, SLURM fails the job and says nothing
  fi
  for i in "${!scripts[@]}"; do
    local more=(--output="$logs/%x-%j.log")
    ((counts[i] == 1)) || more=(--output="$logs/%x-%A_%a.log" --array="0-$((counts[i] - 1))")
    [[ -z $previous ]] || more+=(--dependency="afterany:$previous")
    if ((dry_run)); then
      quoted sbatch "${options[@]}" "${more[@]}" && printf "<<'END'\n%s\nEND\n" "$(job_script "${scripts[i]}")"
      previous=JOB
    else
      previous=$(job_script "${scripts[i]}" | sbatch "${options[@]}" "${more[@]}")
      previous=${previous%%;*} # what follows is the cluster's name
      echo "$job: submitted job $previous with ${counts[i]} run(s); it prints to $logs" >&2
    fi
  done
}

job_script() { # $1: what sets the arguments of each run
  cat <<END
#!/bin/bash
python=$(printf %q "$python") requeue=$requeue
case \${SLURM_ARRAY_TASK_ID:-0} in
${1%$'\n'}
esac
END
  cat <<'END'
# The number of an array means all its runs; one of them has two numbers.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
stopped=0
# Shortly before the time limit. SIGTERM makes the run save a checkpoint and end; the script itself does not get it.
trap 'stopped=1; scancel --signal=TERM "$job"' USR1
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 "$python" -m user_llm.main "$@" &
wait $!
status=$?
if ((stopped)); then # the trap ended the first wait
  wait $!
  status=$?
fi
# 143: it was stopped by that signal; 75: another process holds what it needs, and SLURM waits before it starts a job
# again.
if ((requeue)) && { ((status == 75)) || ((stopped && status == 143)); }; then
  scontrol requeue "$job"
fi
exit $status
END
}

quoted() { printf '%q ' "$@"; }

wrong() { fail 2 "$@"; }

fail() { # $1: the exit status
  echo "error: ${*:2}" >&2
  exit "$1"
}

main "$@"
