#!/usr/bin/env bash
# Pretrains on a Cloud TPU slice of any number of hosts: see --help.
set -euo pipefail

usage() {
  cat <<'END'
Pretrains on a Cloud TPU slice, one process a host.

  launch/tpu_pod.sh create --name=electra --zone=us-east5-b --type=v6e-16 --spot
  launch/tpu_pod.sh setup  --name=electra --zone=us-east5-b
  launch/tpu_pod.sh run    --name=electra --zone=us-east5-b -- --config=configs/pretrain.py:base,flash \
      --workdir=gs://bucket/run --config.data.path=gs://bucket/data
  launch/tpu_pod.sh status | logs | stop | delete --name=electra --zone=us-east5-b

create   asks for the slice (a queued resource); status says when it is ACTIVE
setup    copies the last commit to every host (or clones --repo=URL) and installs it for TPU
run      starts launch/pretrain.py --distributed under launch/supervise.py on every host, in the background;
         every argument after -- goes to pretrain.py as it stands
status   the state of the slice, the last lines of the log, the newest checkpoint
logs     follows the log of host 0 (--worker=N, --worker=all)
stop     tells the run to save and stop; run goes on from there
delete   gives the slice back; what the run has not saved is lost

Options, or the environment:
  --name=NAME        TPU_NAME     the slice (default electra)
  --zone=ZONE        TPU_ZONE     where it is
  --project=PROJECT  TPU_PROJECT  default: gcloud's own
  --type=TYPE        TPU_TYPE     create: v5litepod-16, v6e-16, v5p-32, v4-32 ...
  --runtime=VERSION  TPU_RUNTIME  create: the machine image; default: the one of the generation
  --network=NETWORK  TPU_NETWORK  create: default: gcloud's own
  --spot                          create: cheaper, and may be taken away at any time
  --repo=URL                      setup: clone from there
  --starts=N                      run: give up after N starts without a new checkpoint (default 3)
  --worker=N|all                  logs: which host (default 0)
  --lines=N                       status, logs: so many lines (default 20)
  --dry-run                       print the commands, quoted for a shell, and run nothing
END
}

fail() {
  printf 'tpu_pod.sh: %s\n' "$1" >&2
  exit 2
}

# Words quoted so that any POSIX shell reads them back unchanged.
quote() {
  local word out=''
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/"'\\''"}'" ;;
    esac
    out+="${out:+ }$word"
  done
  printf '%s\n' "$out"
}

call() {
  if [[ -n $dry_run ]]; then quote "$@"; else "$@"; fi
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
command='' dry_run='' spot='' repo='' starts=3 worker=0 lines=20
name=${TPU_NAME:-electra} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-}
type=${TPU_TYPE:-} runtime=${TPU_RUNTIME:-} network=${TPU_NETWORK:-}
args=()

while (($#)); do
  option=${1%%=*}
  case $1 in
    --)
      shift
      args=("$@")
      break
      ;;
    --help | -h)
      usage
      exit 0
      ;;
    --dry-run | --dry_run) dry_run=1 ;;
    --spot) spot=1 ;;
    --name* | --zone* | --project* | --type* | --runtime* | --network* | --repo* | --starts* | --worker* | --lines*)
      case $option in
        --name | --zone | --project | --type | --runtime | --network | --repo | --starts | --worker | --lines) ;;
        *) fail "there is no option $option: --help lists them" ;;
      esac
      if [[ $1 == *=* ]]; then
        value=${1#*=}
      else
        (($# > 1)) || fail "$option has no value: write $option=..."
        value=$2
        shift
      fi
      [[ -n $value && $value != --* ]] || fail "$option has no value: write $option=..."
      printf -v "${option#--}" %s "$value"
      ;;
    -*) fail "there is no option $1: --help lists them (arguments of pretrain.py come after --)" ;;
    create | setup | run | status | logs | stop | delete)
      [[ -z $command ]] || fail "one command at a time: $command or $1"
      command=$1
      ;;
    *) fail "there is no command $1: choose create, setup, run, status, logs, stop or delete" ;;
  esac
  shift
done

[[ -n $command ]] || fail "say what to do: create, setup, run, status, logs, stop or delete (--help)"
[[ $command == run || ${#args[@]} -eq 0 ]] || fail "only run takes arguments after --"
[[ -n $zone ]] || fail "the zone is missing: write --zone=us-east5-b, or set TPU_ZONE"
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name=$name: use small letters, digits and dashes, a letter first"
[[ $starts =~ ^[1-9][0-9]*$ ]] || fail "--starts=$starts: write a whole number from 1 on"
[[ $lines =~ ^[1-9][0-9]*$ ]] || fail "--lines=$lines: write a whole number from 1 on"
[[ $worker =~ ^([0-9]+|all)$ ]] || fail "--worker=$worker: write a host's number, or all"
[[ -n $dry_run ]] || command -v gcloud >/dev/null || fail "gcloud is not installed: see https://cloud.google.com/sdk/docs/install"

place=(--zone="$zone")
[[ -z $project ]] || place+=(--project="$project")
tpus=(gcloud compute tpus)

# Runs one command line on a host, or on all.
on_worker() {
  call "${tpus[@]}" tpu-vm ssh "$name" "${place[@]}" --worker="$1" --command="$2"
}

# Whether the process that run started still lives: the number alone may since be another's.
alive="[ -f run.pid ] && grep -qs supervise.py /proc/\$(cat run.pid)/cmdline"

case $command in
  create)
    if [[ -z $runtime ]]; then
      case $type in
        '') fail "the accelerator type is missing: write --type=v6e-16 (or v5litepod-16, v5p-32, v4-32)" ;;
        v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v6e-*) runtime=v2-alpha-tpuv6e ;;
        v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
        v5e-*) fail "--type=$type: Google calls it v5litepod-${type#v5e-}" ;;
        *) fail "no machine image is known for --type=$type: give one with --runtime=VERSION" ;;
      esac
    fi
    [[ -n $type ]] || fail "the accelerator type is missing: write --type=v6e-16 (or v5litepod-16, v5p-32, v4-32)"
    options=(--node-id="$name" --accelerator-type="$type" --runtime-version="$runtime")
    [[ -z $network ]] || options+=(--network="$network")
    [[ -z $spot ]] || options+=(--spot)
    call "${tpus[@]}" queued-resources create "$name" "${place[@]}" "${options[@]}"
    ;;
  setup)
    # The machine images bring an older Python than we need; uv fetches one.
    python="python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python=3.12 .venv"
    install="python3 -m uv pip install --quiet --python=.venv/bin/python --constraint=constraints/3.12.txt '.[tpu,gcs]'"
    if [[ -n $repo ]]; then
      fetch="if [ -d electra_jax/.git ]; then git -C electra_jax pull --quiet --ff-only; else git clone --quiet $(quote "$repo") electra_jax; fi"
    else
      [[ -z $(git -C "$root" status --porcelain 2>/dev/null) ]] ||
        echo "tpu_pod.sh: what is not committed does not travel: commit it first if the run needs it" >&2
      archive=${TMPDIR:-/tmp}/electra_jax-$name.tar.gz
      call git -C "$root" archive --format=tar.gz --output="$archive" HEAD
      call "${tpus[@]}" tpu-vm scp "$archive" "$name:electra_jax.tar.gz" "${place[@]}" --worker=all
      call rm -f "$archive"
      fetch="mkdir -p electra_jax && tar -xzf electra_jax.tar.gz -C electra_jax"
    fi
    on_worker all "set -e; $fetch; cd electra_jax; $python; $install"
    ;;
  run)
    workdir=''
    for ((i = 0; i < ${#args[@]}; i++)); do
      case ${args[i]} in
        --workdir=* | -workdir=*) workdir=${args[i]#*=} ;;
        --workdir | -workdir) workdir=${args[i + 1]:-} ;;
      esac
    done
    [[ -n $workdir ]] || fail "pretrain.py needs a place that all hosts share: write -- --workdir=gs://bucket/run ..."
    words=(.venv/bin/python -u launch/supervise.py --starts="$starts" --)
    words+=(.venv/bin/python -u launch/pretrain.py --distributed "${args[@]}")
    on_worker all "set -e; cd electra_jax; if $alive; then echo 'a run goes on here already: stop it first' >&2; exit 2; fi; \
printf %s $(quote "$workdir") > run.workdir; \
nohup $(quote "${words[@]}") >> run.log 2>&1 < /dev/null & echo \$! > run.pid"
    ;;
  status)
    describe=("${tpus[@]}" queued-resources describe "$name" "${place[@]}" --format='value(state.state)')
    state=$(call "${describe[@]}")
    echo "$state"
    [[ -n $dry_run || $state == ACTIVE ]] || exit 0
    newest="import sys; from electra_jax import supervise; print('newest checkpoint:', supervise.newest_checkpoint(sys.argv[1]))"
    on_worker 0 "cd electra_jax && if [ -f run.log ]; then tail -n $lines run.log; \
.venv/bin/python -c $(quote "$newest") \"\$(cat run.workdir)\"; else echo 'nothing was run yet'; fi"
    ;;
  logs) on_worker "$worker" "tail -n $lines -F electra_jax/run.log" ;;
  stop) on_worker all "cd electra_jax && if $alive; then kill -TERM \$(cat run.pid); else echo 'nothing runs here'; fi" ;;
  delete) call "${tpus[@]}" queued-resources delete "$name" "${place[@]}" --force --quiet ;;
esac
