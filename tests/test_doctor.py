"""What the doctor says of machines that are whole, and of those that lack something."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from email.message import Message
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from amortized import cli
from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.doctor import __main__ as command
from amortized.doctor import machine as checks
from amortized.doctor import models
from amortized.doctor.machine import GIB, Row
from amortized.doctor.models import Named
from amortized.encodings import engines
from amortized.evaluation import EvaluationConfig, clip
from amortized.priors import loading
from tests.conditioning.encoding import encoded

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = {"checkpoints/shapes-prior", "checkpoints/shapes-clip", "checkpoints/shapes-multi-view"}
REQUIRES = [
    "torch>=2.13",
    "numpy<3,>=2",
    'deepspeed>=1.5; extra == "distributed"',
    'tqdm>=9; python_version < "3"',
]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine with room and all tools, and the versions that are installed on it, to be changed."""
    versions = {name: "9.0" for name in checks.SHOWN} | {"numpy": "2.4"}
    asked = Message()
    asked["Requires-Python"] = ">=3.9"

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    installed = SimpleNamespace(
        version=version,
        requires=lambda name: REQUIRES,
        metadata=lambda name: asked,
        PackageNotFoundError=PackageNotFoundError,
    )
    monkeypatch.setattr(checks, "metadata", installed)
    monkeypatch.setattr(checks.shutil, "which", lambda name, *_: f"/usr/bin/{name}")
    usage = SimpleNamespace(free=100 * GIB, total=100 * GIB)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(checks, "NEEDED_GIB", 0)
    monkeypatch.chdir(ROOT)
    return versions


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the repository holds of presets and models, as an archive has it: without history."""
    for name in ("configs", "checkpoints"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(models, "PRESETS", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named_row(rows, name: str) -> Row:
    [row] = [row for row in rows if row.name == name]
    return row


def model_row(rows, folder: str) -> Row:
    [row] = [row for row in rows if row.found.startswith(folder)]
    return row


def report(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[Row]]:
    status = command.main([*words, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] == (status == 0)
    return status, [Row(**row) for row in told["rows"]]


# ---- the command ------------------------------------------------------------------------------


def test_a_real_run_imports_nothing_that_is_optional(tmp_path: Path) -> None:
    """Each optional package is there, and ends whatever imports it."""
    modules = [*checks.OPTIONAL, "tinycudann"]
    for name in modules:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')")
    done = subprocess.run(
        [sys.executable, "-m", "amortized.doctor", "--json"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = json.loads(done.stdout)
    rows = [Row(**row) for row in told["rows"]]
    assert done.returncode == (0 if told["ok"] else 1) and "Traceback" not in done.stderr
    assert told["ok"] == (not any(row.state in ("missing", "wrong") for row in rows))
    assert list(dict.fromkeys(row.group for row in rows)) == [
        "versions",
        "devices",
        "optional",
        "storage",
        "models",
    ]
    assert all(named_row(rows, name).state == "ok" for name in (*checks.OPTIONAL, "tiny-cuda-nn"))
    assert named_row(rows, "CPU").found.startswith(f"usable cores: {len(os.sched_getaffinity(0))},")


def test_a_machine_that_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = report(capsys)
    assert status == 0 and EMBEDDED == {row.found.split()[0] for row in rows if row.name == "embedded"}
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "versions" and lines[-1] == "Everything required is there."
    # Other work takes disk and memory between the two reports: numbers may differ.
    lines = [re.sub(r"\d+", "0", line) for line in lines]
    for row in rows:
        found = re.sub(r"\d+", "0", row.found)
        assert any(line.startswith(f"  {row.state} ") and found in line for line in lines)


def test_the_text_is_aligned_and_has_the_fix_below() -> None:
    rows = [
        Row("one", "a", "ok", "here"),
        Row("one", "long name", "-", "not here", "pip install it"),
        Row("two", "b", "missing", "nowhere"),
        Row("two", "c", "wrong", "old"),
    ]
    assert command.as_text(rows).splitlines() == [
        "one",
        "  ok       a          here",
        "  -        long name  not here",
        "                      pip install it",
        "",
        "two",
        "  missing  b          nowhere",
        "  wrong    c          old",
        "",
        "Required but missing or wrong: 2.",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["configs/quickstrat.yaml"], "did you mean configs/quickstart.yaml?"),
        (["configs/quickstart.yaml", "prior"], "the override 'prior' must have the form KEY=VALUE"),
        (["configs/quickstart.yaml", "prior.allow_network=perhaps"], "must be true or false, got 'perhaps'"),
        (["text.shards=folder"], "shards must be a list"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(words, sentence, capsys) -> None:
    assert command.main(words) == 2
    told = capsys.readouterr()
    assert not told.out and told.err.count("\n") == 1
    assert told.err.startswith("amortized.doctor: error: ") and sentence in told.err


# ---- packages ---------------------------------------------------------------------------------


def test_a_package_that_is_too_old_or_absent_is_required(machine, capsys) -> None:
    machine["torch"] = "2.12.1+cu128"
    machine.pop("numpy")
    status, rows = report(capsys)
    torch, numpy = named_row(rows, "torch"), named_row(rows, "numpy")
    assert status == 1
    assert torch.state == "wrong" and torch.found.startswith("2.12.1+cu128 (>=2.13)")
    assert torch.fix == 'pip install "torch>=2.13"'
    assert (numpy.state, numpy.found) == ("missing", "not installed (<3,>=2)")
    assert numpy.fix == 'pip install "numpy<3,>=2"'


@pytest.mark.parametrize("version", ["2.13", "2.13.0+cu130", "3.0rc1"])
def test_versions_within_bounds(machine, version: str) -> None:
    machine["torch"] = version
    rows = list(checks.versions(SimpleNamespace(version=SimpleNamespace(cuda="13.0")), ""))
    torch = named_row(rows, "torch")
    assert (torch.state, torch.found) == ("ok", f"{version} (>=2.13), CUDA 13.0")
    # Neither the others that are met, nor those of extras and of other machines.
    assert [row.name for row in rows] == ["amortized3d", *checks.SHOWN]


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.platform, "python_version", lambda: "3.8.1")
    python = named_row(checks.versions(None, ""), "python")
    assert (python.state, python.found) == ("wrong", "3.8.1 (>=3.9)") and "PYTHON=" in python.fix


def test_a_project_that_is_not_installed_has_no_bounds(machine, monkeypatch, capsys) -> None:
    def absent(name: str):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(checks.metadata, "metadata", absent)
    machine["torch"] = "0.1"
    status, rows = report(capsys)
    own = named_row(rows, "amortized3d")
    assert status == 0 and (own.state, own.fix) == ("-", "pip install -e .")
    assert named_row(rows, "torch").state == "ok"


def test_a_torch_that_cannot_be_imported_is_told_with_all_the_rest(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    status, rows = report(capsys)
    torch = named_row(rows, "torch")
    assert status == 1 and torch.state == "wrong" and "cannot be imported" in torch.found
    assert torch.fix == checks.REINSTALL
    assert {"CPU", "deepspeed", "disk", "embedded"} <= {row.name for row in rows}


def test_without_yaml_the_rest_is_told(monkeypatch, capsys) -> None:
    for name in ("yaml", *(name for name in sys.modules if name.startswith("amortized.config"))):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    status, rows = report(capsys)
    assert status == 1 and named_row(rows, "all").fix == "pip install -e ."
    assert named_row(rows, "torch").state == "ok"


def test_what_is_optional_and_absent_is_no_failure(monkeypatch, capsys) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    monkeypatch.setattr(engines, "installed", lambda name: False)
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    status, rows = report(capsys)
    fixes = {row.name: row.fix for row in rows if row.group == "optional" and row.state == "-"}
    assert status == 0
    assert set(fixes) == {*checks.OPTIONAL, *engines.PACKAGES, "g++", "ninja"}
    assert fixes["deepspeed"] == 'pip install "amortized3d[distributed]"'
    assert fixes["wandb"] == 'pip install "wandb"'
    assert fixes["tiny-cuda-nn"] == engines.INSTALL["tiny-cuda-nn"]
    assert fixes["g++"] == "apt-get install g++"


def test_a_package_is_no_mere_folder(machine, monkeypatch) -> None:
    """Runs that are logged leave a folder `wandb`, which Python takes for a package of its own kind."""
    origins = {
        "wandb": None,
        "trackio": "/site/trackio/__init__.py",
        "deepspeed": "/site/deepspeed/__init__.py",
    }
    monkeypatch.setattr(
        checks,
        "find_spec",
        lambda name: ModuleSpec(name, None, origin=origins[name]) if name in origins else None,
    )
    machine["deepspeed"] = "1.5.3"
    rows = list(checks.optional(None))
    assert [named_row(rows, name).found for name in origins] == ["not installed", "installed", "1.5.3"]


def test_ninja_of_an_environment_that_is_not_activated(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    monkeypatch.setattr(checks.sys, "executable", str(tmp_path / "python"))
    assert named_row(checks.optional(None), "ninja").fix == "pip install ninja"
    (tmp_path / "ninja").touch()
    assert named_row(checks.optional(None), "ninja").fix == f'export PATH="{tmp_path}:$PATH"'


# ---- the machine ------------------------------------------------------------------------------


def torch_with(gpus: list, *, cuda: str | None = "13.0", nccl: bool = True) -> SimpleNamespace:
    def properties(index: int):
        if isinstance(gpus[index], Exception):
            raise gpus[index]
        return gpus[index]

    return SimpleNamespace(
        version=SimpleNamespace(cuda=cuda),
        get_num_threads=lambda: 3,
        backends=SimpleNamespace(cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX2")),
        cuda=SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            get_device_properties=properties,
        ),
        distributed=SimpleNamespace(
            is_available=lambda: True, is_gloo_available=lambda: True, is_nccl_available=lambda: nccl
        ),
    )


def test_devices() -> None:
    new = SimpleNamespace(name="New", total_memory=80 * GIB, major=9, minor=0)
    old = SimpleNamespace(name="Old", total_memory=16 * GIB, major=7, minor=5)
    rows = list(checks.devices(torch_with([new, old, RuntimeError("CUDA error\nmore")])))
    assert named_row(rows, "CPU").found.endswith("threads: 3, AVX2")
    assert named_row(rows, "cuda:0").found == "New, 80 GiB, compute capability 9.0, bfloat16"
    assert named_row(rows, "cuda:1").found == "Old, 16 GiB, compute capability 7.5, no bfloat16"
    broken = named_row(rows, "cuda:2")
    assert (broken.state, broken.found, broken.fix) == ("wrong", "CUDA error", "nvidia-smi")
    assert named_row(rows, "nccl").state == "ok"


@pytest.mark.parametrize(
    ("cuda", "driver", "fix"),
    [("13.0", True, "nvidia-smi"), (None, True, checks.REINSTALL), (None, False, "")],
)
def test_no_gpu_is_no_failure(cuda, driver, fix, monkeypatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: name if driver else None)
    rows = list(checks.devices(torch_with([], cuda=cuda, nccl=False)))
    assert (named_row(rows, "CUDA").state, named_row(rows, "CUDA").fix) == ("-", fix)
    assert (named_row(rows, "gloo").state, named_row(rows, "nccl").state) == ("ok", "-")


def test_room_is_looked_for_where_the_run_goes(tmp_path: Path, monkeypatch) -> None:
    asked = []

    def usage(path):
        asked.append(str(path))
        return SimpleNamespace(free=GIB // 2, total=GIB // 16)

    monkeypatch.setattr(checks, "NEEDED_GIB", 1)
    monkeypatch.setattr(checks.shutil, "disk_usage", usage)
    monkeypatch.setattr(checks.os.path, "exists", lambda path: str(path) in (str(tmp_path), "/dev/shm"))
    rows = list(checks.storage(str(tmp_path / "not" / "yet")))
    assert asked == [str(tmp_path), "/dev/shm"]
    disk, shared = named_row(rows, "disk"), named_row(rows, "/dev/shm")
    assert disk.state == "wrong" and disk.found == f"0.5 GiB free in {tmp_path}" and "output=" in disk.fix
    assert (shared.state, shared.found) == ("-", "0.06 GiB") and "--shm-size" in shared.fix


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checks.os, "access", lambda path, mode: mode != os.W_OK)
    disk = named_row(checks.storage(str(tmp_path)), "disk")
    assert disk.state == "wrong" and "not writable" in disk.found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("MemTotal: 9 kB\nMemAvailable:    1572864 kB\n", "1.5 GiB free"),
        ("MemTotal: 9 kB\n", "3.0 GiB in total"),
    ],
)
def test_memory(text: str, found: str, monkeypatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 3 * GIB // 4096}
    monkeypatch.setattr(checks.os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(checks.Path, "read_text", lambda path: text)
    monkeypatch.setattr(checks, "NEEDED_GIB", 2)
    memory = named_row(checks.storage("outputs"), "memory")
    assert (memory.found, memory.state) == (found, "wrong" if "free" in found else "ok")


# ---- models and texts -------------------------------------------------------------------------


def test_the_embedded_models_are_those_that_the_presets_name() -> None:
    assert set(models.embedded()) == EMBEDDED


def test_contents_are_what_the_loaders_ask_for() -> None:
    folders = {pattern.partition("/")[0] for pattern in models.CONTENTS[models.PRIOR]}
    assert folders == set(loading.SUBFOLDERS)
    assert set(models.CONTENTS[models.CLIP]) == {clip.CONFIG_FILE, clip.WEIGHTS_FILE}


@pytest.mark.parametrize("history", [True, False])
def test_weights_that_are_missing_or_cut_short(house: Path, history: bool, capsys) -> None:
    if history:
        (house / ".git").mkdir()
    assert report(capsys)[0] == 0
    shutil.rmtree(house / "checkpoints/shapes-clip")
    unet = house / "checkpoints/shapes-prior/unet/diffusion_pytorch_model.safetensors"
    unet.write_bytes(unet.read_bytes()[:-1])
    shutil.rmtree(house / "checkpoints/shapes-multi-view/tokenizer")
    status, rows = report(capsys)
    assert status == 1
    expected = {
        "checkpoints/shapes-clip": ("missing", "is not a folder"),
        "checkpoints/shapes-prior": ("wrong", f"damaged at unet/{unet.name}"),
        "checkpoints/shapes-multi-view": ("wrong", "has no tokenizer/*"),
    }
    for folder, (state, problem) in expected.items():
        row = model_row(rows, folder)
        assert row.state == state and problem in row.found
        assert row.fix == (f"git checkout -- {folder}" if history else "make weights")


def test_a_pointer_in_place_of_weights_is_told(house: Path) -> None:
    weights = house / "checkpoints/shapes-clip/open_clip_model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13060276\n")
    row = model_row(models.models(Named()), "checkpoints/shapes-clip")
    assert row.state == "wrong" and "damaged at open_clip_model.safetensors" in row.found


def test_a_run_requires_what_it_names(house: Path, capsys) -> None:
    shutil.rmtree(house / "checkpoints/shapes-multi-view")
    status, rows = report(capsys, "configs/quickstart.yaml")
    assert status == 0 and model_row(rows, "checkpoints/shapes-multi-view").state == "-"
    assert named_row(rows, "prior.path").found == "checkpoints/shapes-prior is complete"
    assert named_row(rows, "evaluation.clip").state == "ok"
    status, rows = report(capsys, "configs/shapes16-multi-view.yaml")
    prior = named_row(rows, "prior.path")
    assert status == 1 and (prior.state, prior.fix) == ("missing", "make weights")


def test_overrides_count(tmp_path: Path, capsys) -> None:
    words = (f"prior={tmp_path / 'none'}", f"evaluation.clip=local-dir:{tmp_path}", f"output={tmp_path}")
    status, rows = report(capsys, "configs/quickstart.yaml", *words)
    prior, judge = named_row(rows, "prior.path"), named_row(rows, "evaluation.clip")
    assert status == 1 and named_row(rows, "disk").found.endswith(str(tmp_path))
    assert (prior.state, prior.fix) == ("missing", "prior.path=FOLDER")
    assert judge.state == "wrong" and "has no open_clip_config.json" in judge.found
    assert models.named_by(["prior=one", "prior.path=two"]).prior == "two"


PUBLISHED = "someone/a-model"


@pytest.mark.parametrize(
    ("cached", "named", "state", "fix"),
    [
        ("/cache/unet/config.json", Named(prior=PUBLISHED), "ok", ""),
        (None, Named(prior=PUBLISHED), "missing", f"hf download {PUBLISHED}"),
        (None, Named(prior=PUBLISHED, revision="abc"), "missing", f"hf download {PUBLISHED} --revision abc"),
        (None, Named(prior=PUBLISHED, allow_network=True), "-", ""),
    ],
)
def test_a_prior_of_the_hub(cached, named: Named, state, fix, monkeypatch) -> None:
    asked = []

    def look(name, file, revision):
        asked.append((name, revision))
        return cached

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look)
    row = named_row(models.models(named), "prior.path")
    assert (row.state, row.fix) == (state, fix) and asked == [(PUBLISHED, named.revision)]


def test_a_published_clip_is_fetched_later(capsys) -> None:
    status, rows = report(capsys, "evaluation.clip=ViT-L-14/openai")
    assert status == 0 and named_row(rows, "evaluation.clip").state == "-"


def test_a_prior_that_is_converted_first(house: Path) -> None:
    row = named_row(models.models(models.named_by(["configs/hyper-ingp-mvdream.yaml"])), "prior.path")
    assert row.state == "missing" and "amortized.priors.convert_mvdream" in row.fix


def test_shards(tmp_path: Path, capsys) -> None:
    good = encoded(tmp_path / "good")
    status, rows = report(capsys, f"text.shards=[{good}]")
    assert status == 0 and named_row(rows, "text.shards").found == f"{good} has 23 prompts"
    status, rows = report(capsys, f"text.shards=[{tmp_path / 'none'}]")
    row = named_row(rows, "text.shards")
    assert status == 1 and row.state == "wrong" and row.found.startswith(f"{tmp_path / 'none'} holds no")
    assert f"python -m corpora encode CORPUS --encoder FOLDER --output {tmp_path / 'none'}" in row.fix


@pytest.mark.parametrize("preset", cli.preset_paths(), ids=lambda path: path.stem)
def test_settings_are_read_as_training_reads_them(preset: Path) -> None:
    words = ["corpus=x", "text.shards=[a, 'b c']", "prior.revision=null"]
    run = load_config(RunConfig, preset, words)
    named = models.named_by([str(preset), *words])
    assert (named.output, named.prior, named.revision) == (run.output, run.prior.path, None)
    assert named.allow_network == run.prior.allow_network and named.shards == run.text.shards
    assert (named.clip or EvaluationConfig().clip) == run.evaluation.clip
