"""Arguments arrive unchanged through every launch file, whatever they hold."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amortized.submission.launching import make_plan
from amortized.submission.templates import fill_script
from tests.launch.stubs import JOB, LAUNCH, OPERATOR, ROOT, StubFolder, torchrun_options

PRESET = "configs/quickstart.yaml"
NASTY = [
    'prompt=it\'s "$(touch evil)" `touch evil` ${HOME} $HOME \\ \n#SBATCH --nodes=9\n---\nset -- x\r\t',
    "prompt=$$(PET_SHUTDOWN_TIMEOUT) $(PET_SHUTDOWN_TIMEOUT) $$$$",
    "prompt='\n'; touch evil; '\\\n",
    "prompt=: - [a, {b: c}] # ! & * | > % @ \x85\u2028\ufeff\U0001f600 \x1b[2J",
    "prompt=--rdzv-id amortized3d amortized3d-0.amortized3d",
    "prompt= leading and trailing  \n\n",
    "prompt=null",
    "prompt=",
]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
ARGUMENTS = st.lists(st.sampled_from(NASTY) | TEXTS.map("prompt={}".format), max_size=4)
SAMPLES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def filled_in(tmp_path_factory) -> Path:
    """Templates whose placeholders are filled in."""
    folder = tmp_path_factory.mktemp("templates")
    for name in (JOB, OPERATOR):
        text = (LAUNCH / name).read_text()
        (folder / name).write_text(text.replace("registry.example.com", "registry.here"))
    return folder


def plan(to: str, arguments: list[str], template: Path | None = None, output: str = "/runs/mine"):
    run = Path("/runs/mine")
    return make_plan(to, [PRESET, *arguments, f"output={output}"], run, ROOT, template=template)


def set_line(script: str) -> list[str]:
    """The words of the one command `set -- ...` of a script, as a shell splits them."""
    start = script.index("\nset -- ") + 1
    # It ends at the first line break that is in no quotes.
    words, end = None, start
    while words is None:
        end = script.index("\n", end + 1)
        try:
            words = shlex.split(script[start:end])
        except ValueError:
            continue
    assert words[:2] == ["set", "--"]
    return words[2:]


@pytest.mark.parametrize("to", ["local", "slurm", "ray"])
@SAMPLES
@given(arguments=ARGUMENTS)
def test_scripts(to, arguments):
    assert set_line(plan(to, arguments).launch) == [PRESET, *arguments, "output=/runs/mine"]


@SAMPLES
@given(arguments=ARGUMENTS)
def test_skypilot(arguments):
    task = yaml.safe_load(plan("skypilot", arguments).launch)
    assert set_line("\n" + task["run"]) == [PRESET, *arguments, "output=/runs/mine"]
    template = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert {**task, "run": "", "name": ""} == {**template, "run": "", "name": ""}


def expanded(argument: str, environment: dict[str, str]) -> str:
    """An argument as Kubernetes passes it on: $(NAME) is a variable, $$ is $, all else is itself."""
    out, rest = "", argument
    while rest:
        if rest.startswith("$$"):
            out, rest = out + "$", rest[2:]
        elif rest.startswith("$(") and ")" in rest:
            name, _, after = rest[2:].partition(")")
            out, rest = out + environment.get(name, f"$({name})"), after
        else:
            out, rest = out + rest[0], rest[1:]
    return out


@pytest.mark.parametrize("name", [JOB, OPERATOR])
@SAMPLES
@given(arguments=ARGUMENTS)
def test_kubernetes(filled_in, name, arguments):
    made = plan("kubernetes", arguments, filled_in / name, "outputs/mine")
    objects = {one["kind"]: one for one in yaml.safe_load_all(made.launch)}
    job = objects.get("Job") or objects["PyTorchJob"]
    worker = job["spec"] if "Job" in objects else job["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    given = [expanded(one, environment) for one in container["args"]]
    expected = [PRESET, *arguments, "output=outputs/mine"]
    assert given[-len(expected) :] == expected
    assert len(given) - len(expected) == (2 if name == JOB else 0)
    # Objects of two runs have different names; the claim is the same.
    assert made.job == f"{job['kind'].lower()}/{job['metadata']['name']}" and made.name in made.job
    assert objects["PersistentVolumeClaim"]["metadata"]["name"] == "amortized3d"
    if name == JOB:
        service = objects["Service"]
        assert service["metadata"]["name"] == worker["template"]["spec"]["subdomain"] == made.name
        assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": made.name}
        assert f"--rdzv-endpoint {made.name}-0.{made.name}:29400" in given[0]


@pytest.mark.parametrize("to", ["local", "slurm", "ray"])
def test_a_filled_script_starts_python_with_the_arguments(tmp_path, to):
    """By bash itself, without arguments of the script."""
    stubs, arguments = StubFolder(tmp_path), [PRESET, *NASTY, "output=o"]
    for name in ("torchrun", "python"):
        stubs.stub(name, "[[ $1 != -c ]] || echo 2")
    stubs.stub("srun", 'while [[ $1 == --* ]]; do shift; done; "$@"')
    stubs.stub("scontrol", "echo node-1")
    (tmp_path / "o").mkdir()
    script = make_plan(to, arguments, tmp_path / "o", tmp_path).launch
    # The stubs stand for the programs beside this interpreter, which the script prefers.
    script = "\n".join(line for line in script.split("\n") if not line.startswith("export PATH="))
    (tmp_path / "launch").write_text(script)
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n", "SLURM_PROCID": "0"}
    done = stubs.run("bash", "launch", **job, SLURM_LOCALID="0", SLURM_NTASKS="1")
    assert done.returncode == 0, done.stderr
    last = stubs.calls("torchrun" if to == "local" else "python")[-1]
    if to == "ray":
        options = torchrun_options(last[2:])
        assert last[:2] == ["-m", "torch.distributed.run"] and options.nproc_per_node == "2"
        last = [options.training_script, *options.training_script_args]
    assert last[-len(arguments) - 1 :] == ["train.py", *arguments]
    assert not (tmp_path / "evil").exists()


def test_a_filled_script_is_refused_as_a_template():
    """Its line breaks in quotes would become commands."""
    filled = fill_script("set -euo pipefail\ntrue\n", ["prompt=a\ntouch evil"])
    with pytest.raises(ValueError, match="filled before"):
        fill_script(filled, ["b"])


@pytest.mark.parametrize(
    ("to", "text", "reason"),
    [
        ("local", "true\n", "neither a line"),
        ("skypilot", "run: 3\n", "no run"),
        ("skypilot", "run: |\n  true\n", "lost with the machine"),
        ("kubernetes", "kind: Job\n", "no spec.template.spec"),
        ("kubernetes", "a: &a 1\nb: *a\n", "alias"),
        ("kubernetes", (LAUNCH / JOB).read_text(), "placeholder"),
    ],
)
def test_a_template_that_cannot_be_filled_is_one_sentence(tmp_path, to, text, reason):
    (tmp_path / "template").write_text(text)
    with pytest.raises(ValueError, match=reason) as error:
        make_plan(to, [PRESET, "output=/o/a"], tmp_path / "o", tmp_path, template=tmp_path / "template")
    assert "cannot be filled" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("to", "output"), [("skypilot", "outputs/mine"), ("kubernetes", "/data/mine")])
def test_an_output_that_would_be_lost_is_refused(filled_in, to, output):
    template = filled_in / JOB if to == "kubernetes" else None
    with pytest.raises(ValueError, match="would be lost"):
        plan(to, [], template, output)
