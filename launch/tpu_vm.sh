#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU VM, or on all workers of a pod slice: see `usage`.
set -euo pipefail

usage() {
  cat <<'END'
Runs an experiment on a Cloud TPU VM, or on all workers of a pod slice.

    TPU_NAME=demo ZONE=us-west4-a launch/tpu_vm.sh [--dry_run] STEP... -- ARGS

ARGS are those of `python -m user_llm.main`. The same command again goes on where it was.

Steps:
  create  the VM, unless it is there; a preempted one is replaced
  sync    send the commit HEAD to all workers and install it
  run     start the experiment on all workers and follow it: Ctrl-C or a lost connection end only the following.
          A preempted VM is created and installed again, and the run resumes from its checkpoint
  fetch   copy results, predictions, config, environment, metrics and report to OUT
  delete  the VM, if it is there
  all     create sync run fetch; with --delete, delete at the end

Options:
  --dry_run  print the commands and run none of them
  --delete   the step delete, last

Variables:
  TPU_NAME          name of the VM (needed)
  ZONE              where it is (needed)
  PROJECT           default: that of gcloud
  ACCELERATOR_TYPE  default: v5litepod-8; more than 8 means more than one worker
  RUNTIME_VERSION   default: the one for the accelerator (v2-alpha-tpuv5-lite, ...)
  SPOT              1: a spot VM, cheaper and preemptible; default: 0
  SHARED_FOLDER     folder on the workers, absolute, that all of them see; a relative --workdir lies in it.
                    Needed with more than one worker. Default: /var/tmp/user_llm, lost with the VM
  BUCKET            Cloud Storage bucket to mount there, with gcsfuse
  FILESTORE         or the Filestore share to mount there, as 10.0.0.2:/share
  EXTRA_PIP         packages to install besides ours and jax[tpu]
  OUT               folder here for what is fetched; default: runs/$TPU_NAME/<last part of --workdir>

Exit status: that of the run (0 finished, 1 failed, 75 another process holds its folder, 143 stopped), 2 for a wrong
command line, another one when the run was not followed to its end.
END
}

main() {
  local step steps=() delete=()
  dry_run=0
  while (($#)); do
    case $1 in
      -h | --help) usage && exit ;;
      --dry_run) dry_run=1 ;;
      --delete) delete=(delete) ;;
      all) steps+=(create sync run fetch) ;;
      create | sync | run | fetch | delete) steps+=("$1") ;;
      --) shift && break ;;
      *) wrong "unknown step or option $1: there are create, sync, run, fetch, delete, all, --dry_run and --delete" ;;
    esac
    shift
  done
  steps+=(${delete[@]+"${delete[@]}"}) # the bash of macOS takes an empty array for an unset variable
  ((${#steps[@]})) || wrong "name a step: create, sync, run, fetch, delete or all; --help explains them"
  settings
  case " ${steps[*]} " in *" run "* | *" fetch "*) experiment "$@" ;; esac
  for step in "${steps[@]}"; do "step_$step"; done
}

settings() {
  [[ ${TPU_NAME:-} ]] || wrong "TPU_NAME is not set: the name of the VM"
  [[ ${ZONE:-} ]] || wrong "ZONE is not set: where the VM is, as us-west4-a"
  accelerator=${ACCELERATOR_TYPE:-v5litepod-8}
  [[ $accelerator =~ -([0-9]+)$ ]] || wrong "ACCELERATOR_TYPE=$accelerator: expected one like v5litepod-8"
  many=$((BASH_REMATCH[1] > 8)) lasting=${SHARED_FOLDER:-}${BUCKET:-}${FILESTORE:-}
  if ((many)) && [[ -z $lasting ]]; then
    wrong "$accelerator has more than one worker: set BUCKET, FILESTORE or SHARED_FOLDER, for a folder all of them see"
  fi
  shared=${SHARED_FOLDER:-/var/tmp/user_llm}
  [[ $shared == /* ]] || wrong "SHARED_FOLDER=$shared: expected an absolute path"
  where=(--zone="$ZONE" --quiet)
  [[ -z ${PROJECT:-} ]] || where+=(--project="$PROJECT")
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  code=user_llm-$(git -C "$root" rev-parse --short=12 HEAD) # a folder a commit: what runs is left alone
}

experiment() { # reads the ARGS
  local arg
  flags=() workdir=
  for arg; do
    case $arg in
      --workdir=*) workdir=${arg#*=} ;;
      *) flags+=("$arg") ;;
    esac
  done
  [[ $workdir ]] || wrong "name the folder of the run behind the steps: -- --config=FILE --workdir=FOLDER"
  [[ $workdir == /* ]] || workdir=$shared/$workdir
  flags+=("--workdir=$workdir")
}

step_create() {
  local runtime options
  look ABSENT
  case $state in
    READY) say "$TPU_NAME is there already" && return ;;
    PREEMPTED | TERMINATED) vm delete ;;
    ABSENT) ;;
    *) say "error: $TPU_NAME is $state: wait, or delete it" && exit 1 ;;
  esac
  case $accelerator in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
  options=(--accelerator-type="$accelerator" --version="${RUNTIME_VERSION:-$runtime}")
  if [[ ${SPOT:-0} == 1 ]]; then
    options+=(--spot)
    [[ $lasting ]] || say "note: without BUCKET or FILESTORE a preempted VM takes its checkpoints along"
  fi
  vm create "${options[@]}"
}

step_sync() {
  local bundle=${TMPDIR:-/tmp}/$code.bundle extra=()
  read -ra extra <<< "jax[tpu] ${EXTRA_PIP:-}"
  git -C "$root" diff --quiet HEAD || say "note: HEAD is sent, without your uncommitted changes"
  # A bundle, not an archive, so that results name their commit.
  execute git -C "$root" bundle create --quiet "$bundle" HEAD
  execute gcloud compute tpus tpu-vm scp "$bundle" "$TPU_NAME:user_llm.bundle" "${where[@]}" --worker=all
  execute rm "$bundle"
  # uv brings the Python we need: Google's images have 3.10.
  on_workers all "set -euo pipefail
[ -d ~/$code ] || git -c advice.detachedHead=false clone --quiet ~/user_llm.bundle ~/$code
[ -x ~/.local/bin/uv ] || python3 -m pip install --quiet --user uv
[ -x ~/user_llm-venv/bin/python ] || ~/.local/bin/uv venv --quiet --python 3.11 ~/user_llm-venv
~/.local/bin/uv pip install --quiet --python ~/user_llm-venv/bin/python -e ~/$code $(printf '%q ' "${extra[@]}")"
}

step_run() {
  local status
  look READY
  if [[ $state != READY ]]; then
    step_create
    step_sync
  fi
  # The run inherits descriptor 9, and so holds the lock until it ends.
  on_workers all "set -euo pipefail
cd ~/$code || { echo 'error: this commit is not on the worker: the step sync sends it' >&2; exit 1; }
$(mount_shared)
mkdir -p $(printf %q "$workdir")
cat > ~/user_llm.next <<'END'
cd ~/$code
~/user_llm-venv/bin/python -m user_llm.main --distributed $(printf '%q ' "${flags[@]}")
echo \$? > ~/user_llm.status
END
exec 9>> ~/user_llm.lock
if flock --nonblock 9; then
  mv ~/user_llm.next ~/user_llm.run
  rm -f ~/user_llm.status
  nohup setsid bash ~/user_llm.run >> ~/user_llm.log 2>&1 < /dev/null &
elif ! cmp -s ~/user_llm.next ~/user_llm.run; then
  echo 'error: the worker is busy with another run:' >&2
  cat ~/user_llm.run >&2
  exit 1
fi"
  # Worker 0 speaks for all: gcloud hides the exit status of one of many.
  # shellcheck disable=SC2016 # the worker expands it
  on_workers 0 'tail -n 50 -F ~/user_llm.log & flock --shared ~/user_llm.lock sleep 1; kill $!
exit "$(cat ~/user_llm.status || echo 1)"' && return
  status=$?
  case $status in
    75) say "Another process holds the folder of the run: wait for it to end. Every worker's last lines:" ;;
    130 | 143) say "The run was stopped: the same command goes on. Every worker's last lines:" ;;
    *) say "The run failed, or the connection or the VM was lost: the same command goes on. Every worker's last lines:" ;;
  esac
  on_workers all 'tail -n 20 ~/user_llm.log' || true
  exit "$status"
}

step_fetch() {
  local out=${OUT:-$root/runs/$TPU_NAME/$(basename "$workdir")} archive=user_llm-results.tar.gz
  on_workers 0 "set -euo pipefail
$(mount_shared)
cd $(printf %q "$workdir")
[ -e results.json ] || echo 'note: no results.json yet' >&2
find . -maxdepth 2 \\( -name results.json -o -name predictions.jsonl -o -name config.json -o -name environment.json \\
  -o -name metrics.jsonl -o -name 'report.*' \\) -print0 | tar --null -czf ~/$archive -T -"
  execute mkdir -p "$out"
  execute gcloud compute tpus tpu-vm scp "$TPU_NAME:$archive" "$out/$archive" "${where[@]}" --worker=0
  execute tar -xzf "$out/$archive" -C "$out"
  execute rm "$out/$archive"
}

step_delete() {
  look READY
  if [[ $state == ABSENT ]]; then say "$TPU_NAME is not there"; else vm delete; fi
}

mount_shared() { # prints the commands that see to SHARED_FOLDER on a worker
  local folder mount
  folder=$(printf %q "$shared")
  if [[ ${BUCKET:-} ]]; then
    # Orbax renames whole folders, and what one worker writes the others must see at once.
    mount="command -v gcsfuse > /dev/null || {
    echo deb https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list
    curl -sf https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/google.asc
    sudo apt-get update -q && sudo apt-get install -qy gcsfuse
  } > /dev/null
  gcsfuse --implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 $(printf %q "${BUCKET#gs://}") $folder"
  elif [[ ${FILESTORE:-} ]]; then
    mount="command -v mount.nfs > /dev/null || sudo apt-get install -qy nfs-common > /dev/null
  sudo mount -t nfs $(printf %q "$FILESTORE") $folder && sudo chmod a+rwx $folder"
  else
    ((!many)) || echo "findmnt -nT $folder -t nfs,nfs4,fuse,fuse.gcsfuse,lustre > /dev/null ||
  { echo 'error: SHARED_FOLDER is not mounted on this worker' >&2; exit 1; }"
    return 0
  fi
  echo "if ! mountpoint -q $folder; then
  sudo mkdir -p $folder && sudo chown \"\$(id -u)\" $folder
  $mount
fi"
}

look() { # sets `state` to the VM's: ABSENT where there is none, $1 in a dry run
  local describe=(gcloud compute tpus tpu-vm describe "$TPU_NAME" "${where[@]}" --format="value(state)") errors
  errors=${TMPDIR:-/tmp}/user_llm-describe.$$
  if ((dry_run)); then
    execute "${describe[@]}"
    state=$1
  elif ! state=$("${describe[@]}" 2> "$errors"); then
    grep -q NOT_FOUND "$errors" || { cat "$errors" >&2 && rm "$errors" && exit 1; }
    state=ABSENT
  fi
  rm -f "$errors"
}

vm() { execute gcloud compute tpus tpu-vm "$1" "$TPU_NAME" "${where[@]}" "${@:2}"; }

on_workers() { vm ssh --worker="$1" --command="$2"; } # 0 or all, and a script for bash

execute() { # or, in a dry run, prints
  if ((!dry_run)); then
    "$@"
    return
  fi
  local word line=
  for word; do
    case $word in
      *[!A-Za-z0-9_./:=@,+-]*) word=$(printf %s "$word" | sed "s/'/'\\\\''/g; 1s/^/'/; \$s/\$/'/") ;;
    esac
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

say() { printf '%s\n' "$*" >&2; }

wrong() {
  say "error: $*"
  exit 2
}

main "$@"
