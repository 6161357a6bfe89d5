"""Scripts pass their arguments to torchrun, DeepSpeed and Slurm, and handle exit statuses."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from amortized.parallel import DistributedConfig
from tests.launch.stubs import ARGUMENTS, LAUNCH, StubFolder, torchrun_options

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@pytest.mark.parametrize(
    ("environment", "processes", "restarts"),
    [({}, "gpu", "3"), ({"PROCESSES": "2", "MAX_RESTARTS": "0"}, "2", "0")],
)
def test_one_node(stubs: StubFolder, environment: dict, processes: str, restarts: str) -> None:
    stubs.stub("torchrun", "exit 7")
    assert stubs.run(LAUNCH / "one-node.sh", *ARGUMENTS, **environment).returncode == 7
    (arguments,) = stubs.calls("torchrun")
    options = torchrun_options(arguments)
    assert (
        options.standalone and options.nproc_per_node == processes and str(options.max_restarts) == restarts
    )
    assert stubs.environment()["PET_SHUTDOWN_TIMEOUT"] == "120"
    assert [options.training_script, *options.training_script_args] == ["train.py", *ARGUMENTS]


def test_torchrun_reads_its_shutdown_timeout_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_SHUTDOWN_TIMEOUT", "120")
    options = torchrun_options(["train.py"])  # torch 2.11 rejects the option but ignores the variable
    assert getattr(options, "shutdown_timeout", 120) == 120


RENDEZVOUS = {"NNODES": "2:4", "RDZV_ENDPOINT": "node-1:29400", "RDZV_ID": "mine"}


def test_nodes(stubs: StubFolder) -> None:
    stubs.stub("torchrun")
    assert stubs.run(LAUNCH / "nodes.sh", *ARGUMENTS, **RENDEZVOUS).returncode == 0
    (arguments,) = stubs.calls("torchrun")
    options = torchrun_options(arguments)
    assert (options.nnodes, options.rdzv_endpoint, options.rdzv_id) == tuple(RENDEZVOUS.values())
    assert (
        options.rdzv_backend == "c10d" and options.nproc_per_node == "gpu" and int(options.max_restarts) == 10
    )
    assert not options.standalone and stubs.environment()["PET_SHUTDOWN_TIMEOUT"] == "120"
    assert [options.training_script, *options.training_script_args] == ["train.py", *ARGUMENTS]
    assert stubs.environment()["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.parametrize("missing", RENDEZVOUS)
def test_nodes_report_a_missing_variable(stubs: StubFolder, missing: str) -> None:
    stubs.stub("torchrun")
    variables = {name: value for name, value in RENDEZVOUS.items() if name != missing}
    failed = stubs.run(LAUNCH / "nodes.sh", *ARGUMENTS, **variables)
    assert failed.returncode != 0 and f"e.g. {missing}=" in failed.stderr and not stubs.calls("torchrun")


@pytest.mark.parametrize("hostfile", [None, LAUNCH / "hostfile"])
def test_deepspeed(stubs: StubFolder, hostfile: Path | None) -> None:
    stubs.stub("deepspeed", "exit 75")
    variables = {} if hostfile is None else {"HOSTFILE": str(hostfile)}
    assert stubs.run(LAUNCH / "deepspeed.sh", *ARGUMENTS, **variables).returncode == 75
    (arguments,) = stubs.calls("deepspeed")
    assert arguments[-len(ARGUMENTS) - 1 :] == ["train.py", *ARGUMENTS]
    runner = pytest.importorskip("deepspeed.launcher.runner", reason="DeepSpeed is not installed")
    options = runner.parse_args(arguments)
    assert options.no_local_rank and [options.user_script, *options.user_args] == ["train.py", *ARGUMENTS]
    assert options.hostfile == (runner.DLTS_HOSTFILE if hostfile is None else str(hostfile))
    if hostfile is not None:
        assert dict(runner.fetch_hostfile(options.hostfile)) == {"node-1": 8, "node-2": 8}


def test_deepspeed_requires_the_given_hostfile(stubs: StubFolder) -> None:
    stubs.stub("deepspeed")
    failed = stubs.run(LAUNCH / "deepspeed.sh", *ARGUMENTS, HOSTFILE="nowhere")
    assert failed.returncode == 2 and "nowhere" in failed.stderr and not stubs.calls("deepspeed")


def test_deepspeed_sh_lists_every_zero_strategy() -> None:
    strategies = get_args(get_type_hints(DistributedConfig)["strategy"])
    zero = {name for name in strategies if name.startswith("zero")}
    assert set(re.findall(r"\bzero\d\b", (LAUNCH / "deepspeed.sh").read_text())) == zero


# Two nodes of two tasks; prints the id of each process it starts. Exits with the highest status.
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


def run_slurm(stubs: StubFolder, statuses: str) -> subprocess.CompletedProcess[str]:
    stubs.stub("srun", SRUN)
    stubs.stub("python", PYTHON)
    stubs.stub("scontrol", "[[ $* != 'show hostnames nodes-[7,9]' ]] || printf 'node-7\\nnode-9\\n'")
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "nodes-[7,9]", "SLURM_CPUS_PER_TASK": "12"}
    return stubs.run("bash", LAUNCH / "slurm.sbatch", *ARGUMENTS, STATUSES=statuses, **job)


def test_slurm_starts_one_process_per_gpu(stubs: StubFolder) -> None:
    done = run_slurm(stubs, "0 0 0 0")
    assert done.returncode == 0, done.stderr
    assert stubs.calls("python") == [["train.py", *ARGUMENTS]] * 4
    lines = done.stdout.splitlines()
    # python must be the process that srun started, since srun's signals do not pass through a shell.
    assert [line.split()[1] for line in lines[::2]] == [line.split()[1] for line in lines[1::2]]
    ranks = [line.split()[2:] for line in lines[1::2]]
    assert ranks == [[str(rank), str(rank % 2), "4", "node-7:23456"] for rank in range(4)]
    (arguments,) = stubs.calls("srun")
    assert {"--kill-on-bad-exit=0", "--wait=120", "--cpus-per-task=12"} <= set(arguments)


@pytest.mark.parametrize(
    ("statuses", "ends_with", "requeued"),
    [
        ("75 75 75 75", 75, True),
        ("1 75 75 75", 75, True),  # one process lost its peers while they exited
        ("0 0 0 0", 0, False),
        ("2 2 2 2", 2, False),
        ("1 1 1 1", 1, False),
        ("75 75 137 75", 137, False),
    ],
)
def test_slurm_requeues_a_job_that_saved(
    stubs: StubFolder, statuses: str, ends_with: int, requeued: bool
) -> None:
    done = run_slurm(stubs, statuses)
    assert done.returncode == ends_with
    calls = [call for call in stubs.calls("scontrol") if call[0] == "requeue"]
    assert calls == ([["requeue", "incomplete", "123456"]] if requeued else [])


def test_slurm_directives() -> None:
    text = (LAUNCH / "slurm.sbatch").read_text()
    before, _, after = text.partition("\nset -euo pipefail\n")
    assert "#SBATCH" not in after  # Slurm reads them up to the first command
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", before, re.MULTILINE))
    assert len(directives) == before.count("#SBATCH")
    assert {"requeue": "", "open-mode": "append"}.items() <= directives.items()
    assert directives["ntasks-per-node"] == directives["gpus-per-node"] and "gpus-per-task" not in directives
    signal, _, seconds = directives["signal"].partition("@")
    wait = re.search(r"--wait=(\d+)", after)
    assert signal == "USR1" and wait and int(seconds) > int(wait[1])
