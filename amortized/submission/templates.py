"""Launch files: the templates of configs/launch with a run's arguments, which arrive unchanged.

A template works as it stands. Filled, it holds the arguments of train.py itself, so that it needs none: in a
script, a line `set -- ARGUMENTS` that replaces the one that is there, or follows `set -euo pipefail`.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from amortized.untrusted import parse_yaml_object, short

_SET = re.compile(r"^set -- (?:.*\\\n)*.*\n", re.MULTILINE)
_START = "set -euo pipefail\n"
_PLACEHOLDER = "registry.example.com/"
_NAME = "amortized3d"  # of the objects in a template
IMAGE_FOLDER = "/app"  # the working directory of the project's image


def fill_script(text: str, arguments: Sequence[str], before: Sequence[str] = ()) -> str:
    """A script with its arguments inside; lines of `before` precede them. Raises ValueError."""
    lines = "".join(f"{line}\n" for line in (*before, shlex.join(["set", "--", *arguments])))
    if (match := _SET.search(text)) is not None:
        try:
            shlex.split(match[0])
        except ValueError:  # an argument with a line break: the rest of it would run as commands
            raise ValueError(
                "it was filled before: name the template, not a launch file made of it"
            ) from None
        return text[: match.start()] + lines + text[match.end() :]
    start, found, rest = text.partition(_START)
    if not found:
        raise ValueError(f"it has neither a line `set -- ARGUMENTS` nor `{_START.strip()}`")
    return start + found + lines + rest


def fill_kubernetes(text: str, arguments: Sequence[str], name: str) -> tuple[str, str]:
    """The objects of a Kubernetes template for a run, and its job as KIND/NAME. Raises ValueError.

    Job, service and rendezvous get the name; the volume claim is that of the template.
    """
    jobs = []
    objects = [parse_yaml_object(part, "it") for part in re.split(r"^---\s*$", text, flags=re.MULTILINE)]
    for one in objects:
        kind = _at(one, "kind", str)
        if kind == "Job":
            pod = _at(one, "spec.template.spec", dict)
            pod["subdomain"] = name
            jobs.append((kind, pod))
        elif kind == "PyTorchJob":
            policy = _at(one, "spec.elasticPolicy", dict)
            policy["rdzvId"] = name
            jobs.append((kind, _at(one, "spec.pytorchReplicaSpecs.Worker.template.spec", dict)))
        elif kind == "Service":
            _at(one, "spec.selector", dict)["batch.kubernetes.io/job-name"] = name
        if kind != "PersistentVolumeClaim":
            _at(one, "metadata", dict)["name"] = name
    if len(jobs) != 1:
        raise ValueError(f"it has {len(jobs)} objects of the kind Job or PyTorchJob, and one is required")
    kind, pod = jobs[0]
    container = _at(pod, "containers", list)[0]
    if _PLACEHOLDER in str(_at(container, "image", str)):
        raise ValueError("its `image` is a placeholder: fill in yours in a copy of it, and name that copy")
    old = _at(container, "args", list)
    first = next((i for i, one in enumerate(old) if re.fullmatch(r"\S+\.yaml", str(one))), None)
    if first is None:
        raise ValueError("the args of its container name no preset (configs/NAME.yaml)")
    # Kubernetes replaces $(NAME) in arguments, and $$ by $.
    own = [str(one).replace(_NAME, name) for one in old[:first]]
    claims = {one.get("name") for one in pod.get("volumes") or () if "persistentVolumeClaim" in one}
    mounts = [one["mountPath"] for one in container.get("volumeMounts") or () if one.get("name") in claims]
    _check_output(arguments, container.get("workingDir") or IMAGE_FOLDER, mounts)
    container["args"] = own + [argument.replace("$", "$$") for argument in arguments]
    return _dump(objects), f"{kind.lower()}/{name}"


def fill_skypilot(text: str, arguments: Sequence[str], name: str) -> str:
    """A SkyPilot task for a run. Raises ValueError."""
    task = parse_yaml_object(text, "it")
    run = _at(task, "run", str)
    _check_output(
        arguments, "~/sky_workdir", [*(task.get("file_mounts") or ()), *(task.get("volumes") or ())]
    )
    task["name"] = name
    run = run.replace(f"--rdzv-id {_NAME}", f"--rdzv-id {name}")
    task["run"] = fill_script(run, arguments)
    return _dump([task])


def _check_output(arguments: Sequence[str], folder: str, mounts: Sequence[str]) -> None:
    """Raise ValueError unless the run's folder is on a volume: it would be lost with the machine."""
    outputs = [one.removeprefix("output=") for one in arguments if one.startswith("output=")]
    path = posixpath.normpath(posixpath.join(folder, outputs[-1]))
    if not any(path.startswith(f"{mount.rstrip('/')}/") for mount in mounts):
        raise ValueError(
            f"output={short(outputs[-1])} would be lost with the machine: choose a folder on one of "
            f"its volumes ({', '.join(mounts) or 'it has none'})"
        )


def _at(data: Any, path: str, kind: type) -> Any:
    """The value at a dotted path. Raises ValueError if there is none of this kind."""
    for key in path.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    if not isinstance(data, kind) or not data:
        raise ValueError(f"it has no {path}")
    return data


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, if YAML can."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if re.fullmatch(r"[ -~\n]+", value) and "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def _dump(documents: Sequence[Any]) -> str:
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, width=110, explicit_start=len(documents) > 1
    )
