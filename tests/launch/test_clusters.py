"""Kubernetes and SkyPilot files: their torchrun arguments, volumes, signals and failures."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.launch.stubs import (
    JOB,
    LAUNCH,
    OPERATOR,
    ROOT,
    SKY,
    StubFolder,
    documents,
    pod_of,
    torchrun_options,
)

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@pytest.mark.parametrize("name", [JOB, OPERATOR])
def test_pods_share_outputs_and_have_time_to_save(name: str) -> None:
    pod = pod_of(name)
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    claim = documents(name)["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    # Paths in settings are relative to the image's working directory.
    workdir = re.findall(r"^WORKDIR (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]
    (output,) = [text[len("output=") :] for text in container["args"] if text.startswith("output=")]
    shared = {path for path, volume in mounted.items() if "persistentVolumeClaim" in volume}
    assert shared & {str(parent) for parent in Path(workdir, output).parents}
    (path,) = shared
    assert mounted[path]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert container["resources"]["limits"]["nvidia.com/gpu"] >= 1  # torchrun starts one process per GPU
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert 30 < int(environment["PET_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


def run_container(stubs: StubFolder, index: int) -> subprocess.CompletedProcess[str]:
    container = pod_of(JOB)["containers"][0]
    return stubs.run(*container["command"], *container["args"], JOB_COMPLETION_INDEX=str(index))


def test_the_pod_of_index_0_hosts_the_rendezvous(stubs: StubFolder) -> None:
    stubs.stub("python")
    stubs.stub("torchrun")
    assert [run_container(stubs, index).returncode for index in (0, 1, 10)] == [0, 0, 0]
    objects = documents(JOB)
    job, service = objects["Job"], objects["Service"]
    name, subdomain = job["metadata"]["name"], service["metadata"]["name"]
    all_options = [torchrun_options(arguments) for arguments in stubs.calls("torchrun")]
    conf = [dict(pair.split("=") for pair in options.rdzv_conf.split(",")) for options in all_options]
    assert [pairs.pop("is_host") for pairs in conf] == ["1", "0", "0"] and conf[0] == conf[1]
    spec = job["spec"]
    assert spec["template"]["spec"]["subdomain"] == subdomain and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True  # the rendezvous precedes readiness
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    for options in all_options:
        assert options.rdzv_backend == "c10d" and options.rdzv_endpoint.startswith(f"{name}-0.{subdomain}:")
        assert (
            int(options.nnodes) == spec["completions"] == spec["parallelism"]
            and options.nproc_per_node == "gpu"
        )
        assert options.training_script_args[0] == "configs/published/asd-sd-hyper-ingp-mg15.yaml"
        # The dry run has the settings of the run.
        assert ["train.py", *options.training_script_args, "--dry-run"] in stubs.calls("python")


@pytest.mark.parametrize("status", [1, 2])
def test_indexed_job_ends_with_the_status_of_the_dry_run(stubs: StubFolder, status: int) -> None:
    stubs.stub("python", f"exit {status}")
    stubs.stub("torchrun")
    assert run_container(stubs, 0).returncode == status and not stubs.calls("torchrun")


def test_indexed_job_fails_only_for_mistakes_in_the_settings() -> None:
    spec = documents(JOB)["Job"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["template"]["spec"]["restartPolicy"] == "Never"
    disruption, mistake = spec["podFailurePolicy"]["rules"]
    # The first matching rule applies.
    assert disruption == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    assert mistake["action"] == "FailJob" and mistake["onExitCodes"]["values"] == [2]
    assert mistake["onExitCodes"]["containerName"] == spec["template"]["spec"]["containers"][0]["name"]


def test_pytorchjob_leaves_the_rendezvous_to_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = documents(OPERATOR)["PyTorchJob"]["spec"]
    worker, policy = spec["pytorchReplicaSpecs"]["Worker"], spec["elasticPolicy"]
    assert list(spec["pytorchReplicaSpecs"]) == ["Worker"] and worker["restartPolicy"] == "OnFailure"
    assert 1 <= policy["minReplicas"] <= worker["replicas"] <= policy["maxReplicas"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    variables = {
        "NNODES": "1:4",
        "RDZV_ENDPOINT": "amortized3d-worker-0:23456",
        "RDZV_ID": "x",
        "MAX_RESTARTS": "10",
    }
    for key, value in {**variables, "RDZV_BACKEND": policy["rdzvBackend"], "NPROC_PER_NODE": "auto"}.items():
        monkeypatch.setenv(f"PET_{key}", value)
    program, *arguments = container["command"] + container["args"]
    options = torchrun_options(arguments)
    assert program == "torchrun" and options.rdzv_backend == "c10d" and not options.standalone
    assert {key: str(getattr(options, key.lower())) for key in variables} == variables
    assert options.nproc_per_node == "gpu"
    assert [options.training_script, *options.training_script_args] == ["train.py", *container["args"]]


@pytest.mark.parametrize(("rank", "address"), [(0, "10.0.0.4"), (1, "10.0.0.9")])
def test_skypilot(stubs: StubFolder, rank: int, address: str) -> None:
    task = yaml.safe_load((LAUNCH / SKY).read_text())
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["max_restarts_on_errors"] >= 1
    ((mounted, bucket),) = task["file_mounts"].items()
    assert bucket == {"name": "${BUCKET}", "mode": "MOUNT_CACHED"} and task["envs"] == {"BUCKET": None}
    stubs.stub("torchrun", "exit 1", folder=".venv/bin")
    # SkyPilot appends commands that wait for uploads, then exits with the status of `run`.
    done = stubs.run(
        "bash",
        "-c",
        f"{task['run']}\nstatus=$?; echo uploaded; exit $status",
        SKYPILOT_NODE_IPS="10.0.0.4\n10.0.0.9",
        SKYPILOT_NODE_RANK=str(rank),
        SKYPILOT_NUM_NODES="2",
        SKYPILOT_NUM_GPUS_PER_NODE="8",
    )
    assert done.returncode == 1 and done.stdout == "uploaded\n", done.stderr
    (arguments,) = stubs.calls("torchrun")
    options = torchrun_options(arguments)
    assert (options.nnodes, options.nproc_per_node, options.rdzv_backend) == ("2", "8", "c10d")
    assert options.rdzv_endpoint == "10.0.0.4:29400" and options.local_addr == address
    assert options.rdzv_conf == f"is_host={int(rank == 0)}"
    assert f"output={mounted}/mine" in options.training_script_args
    assert stubs.environment()["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
