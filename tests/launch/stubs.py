"""Stub programs, and readers of the files in configs/launch."""

from __future__ import annotations

import os
import shutil
import subprocess
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "configs" / "launch"
SCRIPTS = ["one-node.sh", "nodes.sh", "deepspeed.sh", "slurm.sbatch", "ray-job.sh"]
JOB, OPERATOR, SKY = "kubernetes-indexed-job.yaml", "kubernetes-pytorchjob.yaml", "skypilot.yaml"
ARGUMENTS = ["configs/quickstart.yaml", "prompt=a red cube", "output=outputs/mine"]


@dataclass
class StubFolder:
    """A folder whose bin/ has stub programs that record their arguments and environment."""

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
        """Return the arguments of each call of a program so far."""
        path = self.folder / "calls"
        lines = (
            [call.split("\037")[:-1] for call in path.read_bytes().decode().split("\036")[:-1]]
            if path.exists()
            else []
        )
        return [arguments for program, *arguments in lines if program == name]

    def environment(self) -> dict[str, str]:
        """Return the environment of the last program called."""
        lines = (self.folder / "environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


def torchrun_options(arguments: list[str]) -> Namespace:
    """Parse arguments as the installed torchrun does; an unknown option fails the test."""
    parser = get_args_parser()
    parser.allow_abbrev = False
    return parser.parse_args(arguments)


def documents(name: str) -> dict[str, dict]:
    """Return the objects of a Kubernetes file by kind."""
    return {item["kind"]: item for item in yaml.safe_load_all((LAUNCH / name).read_text())}


def pod_of(name: str) -> dict:
    objects = documents(name)
    if name == JOB:
        return objects["Job"]["spec"]["template"]["spec"]
    return objects["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
