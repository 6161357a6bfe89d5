"""Two nodes with a launcher each, on one machine: ranks, shares, and a node that is lost and comes back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amortized.checkpointing import list_checkpoints
from tests.training.toy import log_lines, make_trainer


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def node(folder: Path, port: int, output: Path, *, hosts: bool, **changes) -> subprocess.Popen:
    """A launcher with two processes, in its own process group; one launcher hosts the rendezvous."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=toy"]
    command += [f"--rdzv-conf=is_host={int(hosts)}"]  # on one machine both would think it is them
    command += ["--local-addr=127.0.0.1", "--max-restarts=3", "-m", "tests.training.toy", str(folder)]
    with output.open("a") as file:
        return subprocess.Popen(
            [*command, json.dumps(changes)],
            # Without the second a launcher that comes back cannot meet those that have met (torch 2.15).
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.fixture
def nodes():
    """Those that are started; none is left behind."""
    started: list[subprocess.Popen] = []
    yield started
    for one in started:
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)
        one.wait()


def wait_until(happened, seconds: float = 120.0) -> None:
    start = time.monotonic()
    while not happened():
        assert time.monotonic() - start < seconds, "the run did not get so far"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_node_is_lost_and_comes_back(tmp_path, nodes):
    changes = {"steps": 400, "prompts_per_process": 1, "checkpointing": {"every": 20}}
    folder, port, told = tmp_path / "run", free_port(), [tmp_path / "a.txt", tmp_path / "b.txt"]
    nodes += [node(folder, port, told[0], hosts=True, **changes)]
    nodes += [node(folder, port, told[1], hosts=False, **changes)]
    wait_until(lambda: len(list_checkpoints(folder / "checkpoints")) > 1)
    os.killpg(nodes[1].pid, signal.SIGKILL)
    nodes[1].wait()
    lost_at = list_checkpoints(folder / "checkpoints")[-1].name
    assert lost_at != "step_000400", "lost too late to tell"
    nodes.append(node(folder, port, told[1], hosts=False, **changes))
    assert nodes[2].wait(timeout=200) == 0, told[1].read_text()[-3000:]
    assert nodes[0].wait(timeout=60) == 0, told[0].read_text()[-3000:]

    lines = log_lines(folder)
    assert [line["step"] for line in lines] == list(range(1, 401))
    one = make_trainer(tmp_path / "one", **{**changes, "steps": 400, "prompts_per_process": 4})
    one.train(quiet=True)
    for mine, whole in zip(lines, log_lines(tmp_path / "one"), strict=True):
        assert (mine["batch_digest"], mine["prompts_seen"]) == (whole["batch_digest"], whole["prompts_seen"])
    assert lines[30]["loss"] == pytest.approx(log_lines(tmp_path / "one")[30]["loss"], rel=1e-2)

    begun = [
        json.loads(line) for path in told for line in path.read_text().splitlines() if line[:7] == '{"RANK"'
    ]
    assert len(begun) in (8, 9, 10)  # four processes, twice; perhaps some that met only to part again
    for process in begun:
        assert process["RANK"] == 2 * process["GROUP_RANK"] + process["LOCAL_RANK"]
        assert process["slots"] == [[process["RANK"]]]
    assert {process["RANK"] for process in begun} == {0, 1, 2, 3}
    events = [json.loads(line)["note"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert sum("4 processes, ddp, 4 prompts a step" in note for note in events) >= 2
