#!/usr/bin/env bash
# Pretrains on a TPU slice of a GKE cluster: see --help.
set -euo pipefail

usage() {
  cat <<'END'
Pretrains on a TPU slice of a GKE cluster, one pod a host: an Indexed Job and the headless service by which its pods find each other.

  launch/gke.sh apply  --name=electra --image=REGION-docker.pkg.dev/PROJECT/REPO/electra_jax --tpu=tpu-v6e-slice --topology=4x4 \
      -- --config=configs/pretrain.py:base,flash --workdir=gs://bucket/run --config.data.path=gs://bucket/data
  launch/gke.sh status | logs | delete --name=electra

apply    creates the job; every argument after -- goes to pretrain.py as it stands
status   the job and its pods
logs     follows the log of host 0 (--worker=N)
delete   ends the job; its pods are given --grace_secs to save

The image holds this project at its working directory, installed for TPU:
  FROM python:3.12
  WORKDIR /electra_jax
  COPY . .
  RUN pip install --constraint constraints/3.12.txt '.[tpu,gcs]'

Options:
  --name=NAME             the job (default electra)
  --namespace=NAMESPACE   default: kubectl's own; so is --context=CONTEXT
  --image=IMAGE           apply: needed
  --tpu=ACCELERATOR       apply: tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice, tpu7x
  --topology=4x4          apply: of the slice's chips; 2x2x2 on v4, v5p and tpu7x
  --chips=N               apply: a host has so many (default 4, or all of a smaller slice)
  --spot                  apply: on spot machines
  --service-account=NAME  apply: a Kubernetes account that may read and write the bucket
  --grace-secs=N          apply: a pod that must go has so long to save (default 300)
  --starts=N              apply: give up after N starts without a new checkpoint (default 3)
  --worker=N              logs: which host (default 0)
  --dry-run               print the manifest and the commands, quoted for a shell, and run nothing
END
}

fail() {
  printf 'gke.sh: %s\n' "$1" >&2
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

# A list of JSON strings, which YAML reads too. Kubernetes expands $(NAME) in a command; $$ is its plain $.
json_list() {
  local word out='' char
  for word in "$@"; do
    word=${word//\\/\\\\}
    word=${word//\"/'\"'}
    word=${word//\$/'$$'}
    for char in n:$'\n' t:$'\t' r:$'\r'; do
      word=${word//"${char#*:}"/"\\${char%%:*}"}
    done
    [[ ! $word =~ [[:cntrl:]] ]] || fail "an argument holds a control character: take it out"
    out+="${out:+, }\"$word\""
  done
  printf '[%s]\n' "$out"
}

command='' dry_run='' spot='' name=electra namespace='' context='' image='' tpu='' topology='' chips=''
service_account='' grace_secs=300 starts=3 worker=0
args=()

while (($#)); do
  option=${1%%=*}
  case $option in
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
    --name | --namespace | --context | --image | --tpu | --topology | --chips | --service[-_]account | --grace[-_]secs | --starts | --worker)
      if [[ $1 == *=* ]]; then
        value=${1#*=}
      else
        (($# > 1)) || fail "$option has no value: write $option=..."
        value=$2
        shift
      fi
      [[ -n $value && $value != --* ]] || fail "$option has no value: write $option=..."
      option=${option#--}
      printf -v "${option//-/_}" %s "$value"
      ;;
    -*) fail "there is no option $option: --help lists them (arguments of pretrain.py come after --)" ;;
    apply | status | logs | delete)
      [[ -z $command ]] || fail "one command at a time: $command or $1"
      command=$1
      ;;
    *) fail "there is no command $1: choose apply, status, logs or delete" ;;
  esac
  shift
done

[[ -n $command ]] || fail "say what to do: apply, status, logs or delete (--help)"
[[ $command == apply || ${#args[@]} -eq 0 ]] || fail "only apply takes arguments after --"
[[ $name =~ ^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$ ]] || fail "--name=$name: use at most 52 small letters, digits and dashes, a letter first"
for number in chips grace_secs starts; do
  [[ -z ${!number} || ${!number} =~ ^[1-9][0-9]*$ ]] || fail "--$number=${!number}: write a whole number from 1 on"
done
[[ $worker =~ ^[0-9]+$ ]] || fail "--worker=$worker: write a host's number"

kubectl=(kubectl)
[[ -z $context ]] || kubectl+=(--context="$context")
[[ -z $namespace ]] || kubectl+=(--namespace="$namespace")
[[ -n $dry_run ]] || command -v kubectl >/dev/null || fail "kubectl is not installed: gcloud components install kubectl"

manifest() {
  local count=1 side hosts quoted_image quoted_command
  for side in ${topology//x/ }; do count=$((count * side)); done
  [[ -n $chips ]] || chips=$((count < 4 ? count : 4))
  ((count % chips == 0)) || fail "--topology=$topology has $count chips, which hosts of $chips cannot share: choose another --chips"
  hosts=$((count / chips))
  quoted_image=$(json_list "$image") || exit 2
  quoted_image=${quoted_image#[} quoted_image=${quoted_image%]}
  quoted_command=$(json_list python -u launch/supervise.py --starts="$starts" -- python -u launch/pretrain.py --distributed "${args[@]}") || exit 2
  cat <<END
apiVersion: v1
kind: Service
metadata:
  name: "$name"
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    job-name: "$name"
---
apiVersion: batch/v1
kind: Job
metadata:
  name: "$name"
spec:
  completionMode: Indexed
  completions: $hosts
  parallelism: $hosts
  # A pod that ends with 42 is started again and counts here: where nothing else took it away, launch/supervise.py gave up.
  backoffLimit: $((2 * hosts))
  podFailurePolicy:
    rules:
    # Something to mend, or a defect: another start would end alike.
    - action: FailJob
      onExitCodes:
        containerName: pretrain
        operator: In
        values: [1, 2]
    # Preempted, drained, evicted: as often as it happens.
    - action: Ignore
      onPodConditions:
      - type: DisruptionTarget
  template:
    spec:
      subdomain: "$name"
      restartPolicy: Never
      terminationGracePeriodSeconds: $grace_secs
END
  [[ -z $service_account ]] || printf '      serviceAccountName: "%s"\n' "$service_account"
  cat <<END
      nodeSelector:
        cloud.google.com/gke-tpu-accelerator: $tpu
        cloud.google.com/gke-tpu-topology: $topology
END
  [[ -z $spot ]] || cat <<'END'
        cloud.google.com/gke-spot: "true"
      tolerations:
      - key: cloud.google.com/gke-spot
        operator: Equal
        value: "true"
        effect: NoSchedule
END
  cat <<END
      containers:
      - name: pretrain
        image: $quoted_image
        command: $quoted_command
        resources:
          requests:
            google.com/tpu: $chips
          limits:
            google.com/tpu: $chips
END
}

case $command in
  apply)
    [[ -n $image ]] || fail "the image is missing: write --image=REGION-docker.pkg.dev/PROJECT/REPO/electra_jax"
    [[ $tpu =~ ^tpu[-a-z0-9]+$ ]] || fail "--tpu=$tpu: write what GKE calls the slice, such as --tpu=tpu-v6e-slice"
    [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "--topology=$topology: write the slice's chips, such as --topology=4x4"
    [[ -z $service_account || $service_account =~ ^[a-z0-9.-]+$ ]] || fail "--service-account=$service_account is no name of an account"
    [[ " ${args[*]-}" =~ \ --?workdir(=|\ )[^-\ ] ]] || fail "pretrain.py needs a place that all hosts share: write -- --workdir=gs://bucket/run ..."
    yaml=$(manifest)
    if [[ -n $dry_run ]]; then
      printf "%s <<'END'\n%s\nEND\n" "$(quote "${kubectl[@]}" apply --filename=-)" "$yaml"
    else
      "${kubectl[@]}" apply --filename=- <<<"$yaml"
    fi
    ;;
  status) call "${kubectl[@]}" get jobs,pods --selector=job-name="$name" --output=wide ;;
  logs)
    call "${kubectl[@]}" logs --follow --tail=100 --selector="job-name=$name,batch.kubernetes.io/job-completion-index=$worker"
    ;;
  delete) call "${kubectl[@]}" delete "job/$name" "service/$name" ;;
esac
