"""Two launchers on one machine stand for two nodes: ranks, slots, and a node that is lost and returns."""

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
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_node(folder: Path, port: int, output: Path, *, hosts: bool, **changes) -> subprocess.Popen:
    """Start a launcher of two processes in a new process group; one launcher hosts the rendezvous."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=toy"]
    command += [f"--rdzv-conf=is_host={int(hosts)}"]  # on one machine both would claim to be the host
    command += ["--local-addr=127.0.0.1", "--max-restarts=3", "-m", "tests.training.toy", str(folder)]
    with output.open("a") as file:
        return subprocess.Popen(
            [*command, json.dumps(changes)],
            # Without the second variable a restarted launcher cannot join the rendezvous (torch 2.15).
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.fixture
def nodes():
    """A list for launchers; those that still run after the test are killed."""
    launchers: list[subprocess.Popen] = []
    yield launchers
    for launcher in launchers:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def wait_until(condition, seconds: float = 120.0) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "the run did not get that far"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_lost_node_returns(tmp_path, nodes):
    changes = {"steps": 400, "prompts_per_process": 1, "checkpointing": {"every": 20}}
    folder, port, outputs = tmp_path / "run", free_port(), [tmp_path / "a.txt", tmp_path / "b.txt"]
    nodes += [start_node(folder, port, outputs[0], hosts=True, **changes)]
    nodes += [start_node(folder, port, outputs[1], hosts=False, **changes)]
    wait_until(lambda: len(list_checkpoints(folder / "checkpoints")) > 1)
    os.killpg(nodes[1].pid, signal.SIGKILL)
    nodes[1].wait()
    lost_at = list_checkpoints(folder / "checkpoints")[-1].name
    assert lost_at != "step_000400", "lost after the last checkpoint"
    nodes.append(start_node(folder, port, outputs[1], hosts=False, **changes))
    assert nodes[2].wait(timeout=200) == 0, outputs[1].read_text()[-3000:]
    assert nodes[0].wait(timeout=60) == 0, outputs[0].read_text()[-3000:]

    lines = log_lines(folder)
    assert [line["step"] for line in lines] == list(range(1, 401))
    one = make_trainer(tmp_path / "one", **{**changes, "steps": 400, "prompts_per_process": 4})
    one.train(quiet=True)
    for a, b in zip(lines, log_lines(tmp_path / "one"), strict=True):
        assert (a["batch_digest"], a["prompts_seen"]) == (b["batch_digest"], b["prompts_seen"])
    assert lines[30]["loss"] == pytest.approx(log_lines(tmp_path / "one")[30]["loss"], rel=1e-2)

    starts = [
        json.loads(line)
        for path in outputs
        for line in path.read_text().splitlines()
        if line[:7] == '{"RANK"'
    ]
    assert len(starts) in (8, 9, 10)  # four processes, twice; perhaps some of a rendezvous that failed
    for process in starts:
        assert process["RANK"] == 2 * process["GROUP_RANK"] + process["LOCAL_RANK"]
        assert process["slots"] == [[process["RANK"]]]
    assert {process["RANK"] for process in starts} == {0, 1, 2, 3}
    events = [json.loads(line)["note"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert sum("4 processes, ddp, 4 prompts per step" in note for note in events) >= 2
