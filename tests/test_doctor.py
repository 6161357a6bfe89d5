"""The doctor reports missing and broken packages, devices, models and settings, each with a fix."""

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
from amortized.doctor.models import Resources
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
    """Simulate a machine with all tools; return its installed versions, which tests may change."""
    versions = {name: "9.0" for name in checks.ALWAYS_SHOWN} | {"numpy": "2.4"}
    project = Message()
    project["Requires-Python"] = ">=3.9"

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    installed = SimpleNamespace(
        version=version,
        requires=lambda name: REQUIRES,
        metadata=lambda name: project,
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
def repo_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the presets and models, as in a source archive: without .git."""
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
    [row] = [row for row in rows if row.detail.startswith(folder)]
    return row


def report(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[Row]]:
    status = command.main([*words, "--json"])
    output = json.loads(capsys.readouterr().out)
    assert output["ok"] == (status == 0)
    return status, [Row(**row) for row in output["rows"]]


# ---- the command ------------------------------------------------------------------------------


def test_optional_packages_are_not_imported(tmp_path: Path) -> None:
    """Every optional package is installed, as a stub that exits on import."""
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
    output = json.loads(done.stdout)
    rows = [Row(**row) for row in output["rows"]]
    assert done.returncode == (0 if output["ok"] else 1) and "Traceback" not in done.stderr
    assert output["ok"] == (not any(row.state in ("missing", "wrong") for row in rows))
    assert list(dict.fromkeys(row.group for row in rows)) == [
        "versions",
        "devices",
        "optional",
        "storage",
        "models",
    ]
    assert all(named_row(rows, name).state == "ok" for name in (*checks.OPTIONAL, "tiny-cuda-nn"))
    assert named_row(rows, "CPU").detail.startswith(f"usable cores: {len(os.sched_getaffinity(0))},")


def test_a_complete_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = report(capsys)
    assert status == 0 and EMBEDDED == {row.detail.split()[0] for row in rows if row.name == "embedded"}
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "versions" and lines[-1] == "Everything required is there."
    # Free disk and memory change between the two reports, so digits are masked.
    lines = [re.sub(r"\d+", "0", line) for line in lines]
    for row in rows:
        detail = re.sub(r"\d+", "0", row.detail)
        assert any(line.startswith(f"  {row.state} ") and detail in line for line in lines)


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
    output = capsys.readouterr()
    assert not output.out and output.err.count("\n") == 1
    assert output.err.startswith("amortized.doctor: error: ") and sentence in output.err


# ---- packages ---------------------------------------------------------------------------------


def test_an_old_or_absent_requirement_fails(machine, capsys) -> None:
    machine["torch"] = "2.12.1+cu128"
    machine.pop("numpy")
    status, rows = report(capsys)
    torch, numpy = named_row(rows, "torch"), named_row(rows, "numpy")
    assert status == 1
    assert torch.state == "wrong" and torch.detail.startswith("2.12.1+cu128 (>=2.13)")
    assert torch.fix == 'pip install "torch>=2.13"'
    assert (numpy.state, numpy.detail) == ("missing", "not installed (<3,>=2)")
    assert numpy.fix == 'pip install "numpy<3,>=2"'


@pytest.mark.parametrize("version", ["2.13", "2.13.0+cu130", "3.0rc1"])
def test_versions_within_bounds(machine, version: str) -> None:
    machine["torch"] = version
    rows = list(checks.version_rows(SimpleNamespace(version=SimpleNamespace(cuda="13.0")), ""))
    torch = named_row(rows, "torch")
    assert (torch.state, torch.detail) == ("ok", f"{version} (>=2.13), CUDA 13.0")
    # No rows for other requirements that are met, for extras or for other platforms.
    assert [row.name for row in rows] == ["amortized3d", *checks.ALWAYS_SHOWN]


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.platform, "python_version", lambda: "3.8.1")
    python = named_row(checks.version_rows(None, ""), "python")
    assert (python.state, python.detail) == ("wrong", "3.8.1 (>=3.9)") and "PYTHON=" in python.fix


def test_without_an_installed_project_there_are_no_bounds(machine, monkeypatch, capsys) -> None:
    def absent(name: str):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(checks.metadata, "metadata", absent)
    machine["torch"] = "0.1"
    status, rows = report(capsys)
    project = named_row(rows, "amortized3d")
    assert status == 0 and (project.state, project.fix) == ("-", "pip install -e .")
    assert named_row(rows, "torch").state == "ok"


def test_a_broken_torch_is_reported_with_all_other_rows(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    status, rows = report(capsys)
    torch = named_row(rows, "torch")
    assert status == 1 and torch.state == "wrong" and "cannot be imported" in torch.detail
    assert torch.fix == checks.REINSTALL
    assert {"CPU", "deepspeed", "disk", "embedded"} <= {row.name for row in rows}


def test_without_yaml_the_other_rows_are_reported(monkeypatch, capsys) -> None:
    for name in ("yaml", *(name for name in sys.modules if name.startswith("amortized.config"))):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    status, rows = report(capsys)
    assert status == 1 and named_row(rows, "all").fix == "pip install -e ."
    assert named_row(rows, "torch").state == "ok"


def test_absent_optional_packages_do_not_fail(monkeypatch, capsys) -> None:
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


def test_a_plain_folder_is_not_an_installed_package(machine, monkeypatch) -> None:
    """Tracked runs leave a folder `wandb`, which Python finds as a namespace package."""
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
    rows = list(checks.optional_rows(None))
    assert [named_row(rows, name).detail for name in origins] == ["not installed", "installed", "1.5.3"]


def test_ninja_of_an_environment_that_is_not_activated(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    monkeypatch.setattr(checks.sys, "executable", str(tmp_path / "python"))
    assert named_row(checks.optional_rows(None), "ninja").fix == "pip install ninja"
    (tmp_path / "ninja").touch()
    assert named_row(checks.optional_rows(None), "ninja").fix == f'export PATH="{tmp_path}:$PATH"'


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
    rows = list(checks.device_rows(torch_with([new, old, RuntimeError("CUDA error\nmore")])))
    assert named_row(rows, "CPU").detail.endswith("threads: 3, AVX2")
    assert named_row(rows, "cuda:0").detail == "New, 80 GiB, compute capability 9.0, bfloat16"
    assert named_row(rows, "cuda:1").detail == "Old, 16 GiB, compute capability 7.5, no bfloat16"
    broken = named_row(rows, "cuda:2")
    assert (broken.state, broken.detail, broken.fix) == ("wrong", "CUDA error", "nvidia-smi")
    assert named_row(rows, "nccl").state == "ok"


@pytest.mark.parametrize(
    ("cuda", "driver", "fix"),
    [("13.0", True, "nvidia-smi"), (None, True, checks.REINSTALL), (None, False, "")],
)
def test_a_machine_without_a_gpu_does_not_fail(cuda, driver, fix, monkeypatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: name if driver else None)
    rows = list(checks.device_rows(torch_with([], cuda=cuda, nccl=False)))
    assert (named_row(rows, "CUDA").state, named_row(rows, "CUDA").fix) == ("-", fix)
    assert (named_row(rows, "gloo").state, named_row(rows, "nccl").state) == ("ok", "-")


def test_disk_is_measured_at_the_nearest_existing_parent_of_output(tmp_path: Path, monkeypatch) -> None:
    measured = []

    def usage(path):
        measured.append(str(path))
        return SimpleNamespace(free=GIB // 2, total=GIB // 16)

    monkeypatch.setattr(checks, "NEEDED_GIB", 1)
    monkeypatch.setattr(checks.shutil, "disk_usage", usage)
    monkeypatch.setattr(checks.os.path, "exists", lambda path: str(path) in (str(tmp_path), "/dev/shm"))
    rows = list(checks.storage_rows(str(tmp_path / "not" / "yet")))
    assert measured == [str(tmp_path), "/dev/shm"]
    disk, shared = named_row(rows, "disk"), named_row(rows, "/dev/shm")
    assert disk.state == "wrong" and disk.detail == f"0.5 GiB free in {tmp_path}" and "output=" in disk.fix
    assert (shared.state, shared.detail) == ("-", "0.06 GiB") and "--shm-size" in shared.fix


def test_a_read_only_output_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checks.os, "access", lambda path, mode: mode != os.W_OK)
    disk = named_row(checks.storage_rows(str(tmp_path)), "disk")
    assert disk.state == "wrong" and "not writable" in disk.detail


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("MemTotal: 9 kB\nMemAvailable:    1572864 kB\n", "1.5 GiB free"),
        ("MemTotal: 9 kB\n", "3.0 GiB in total"),
    ],
)
def test_memory(text: str, detail: str, monkeypatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 3 * GIB // 4096}
    monkeypatch.setattr(checks.os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(checks.Path, "read_text", lambda path: text)
    monkeypatch.setattr(checks, "NEEDED_GIB", 2)
    memory = named_row(checks.storage_rows("outputs"), "memory")
    assert (memory.detail, memory.state) == (detail, "wrong" if "free" in detail else "ok")


# ---- models and texts -------------------------------------------------------------------------


def test_the_embedded_models_are_those_that_presets_name() -> None:
    assert set(models.embedded_models()) == EMBEDDED


def test_checked_files_are_those_that_the_loaders_read() -> None:
    folders = {pattern.partition("/")[0] for pattern in models.CONTENTS[models.PRIOR]}
    assert folders == set(loading.SUBFOLDERS)
    assert set(models.CONTENTS[models.CLIP]) == {clip.CONFIG_FILE, clip.WEIGHTS_FILE}


@pytest.mark.parametrize("history", [True, False])
def test_missing_and_truncated_weights(repo_copy: Path, history: bool, capsys) -> None:
    if history:
        (repo_copy / ".git").mkdir()
    assert report(capsys)[0] == 0
    shutil.rmtree(repo_copy / "checkpoints/shapes-clip")
    unet = repo_copy / "checkpoints/shapes-prior/unet/diffusion_pytorch_model.safetensors"
    unet.write_bytes(unet.read_bytes()[:-1])
    shutil.rmtree(repo_copy / "checkpoints/shapes-multi-view/tokenizer")
    status, rows = report(capsys)
    assert status == 1
    expected = {
        "checkpoints/shapes-clip": ("missing", "is not a folder"),
        "checkpoints/shapes-prior": ("wrong", f"damaged at unet/{unet.name}"),
        "checkpoints/shapes-multi-view": ("wrong", "has no tokenizer/*"),
    }
    for folder, (state, problem) in expected.items():
        row = model_row(rows, folder)
        assert row.state == state and problem in row.detail
        assert row.fix == (f"git checkout -- {folder}" if history else "make weights")


def test_a_git_lfs_pointer_instead_of_weights_is_reported(repo_copy: Path) -> None:
    weights = repo_copy / "checkpoints/shapes-clip/open_clip_model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13060276\n")
    row = model_row(models.model_rows(Resources()), "checkpoints/shapes-clip")
    assert row.state == "wrong" and "damaged at open_clip_model.safetensors" in row.detail


def test_a_run_requires_the_models_that_it_names(repo_copy: Path, capsys) -> None:
    shutil.rmtree(repo_copy / "checkpoints/shapes-multi-view")
    status, rows = report(capsys, "configs/quickstart.yaml")
    assert status == 0 and model_row(rows, "checkpoints/shapes-multi-view").state == "-"
    assert named_row(rows, "prior.path").detail == "checkpoints/shapes-prior is complete"
    assert named_row(rows, "evaluation.clip").state == "ok"
    status, rows = report(capsys, "configs/shapes16-multi-view.yaml")
    prior = named_row(rows, "prior.path")
    assert status == 1 and (prior.state, prior.fix) == ("missing", "make weights")


def test_overrides_are_read(tmp_path: Path, capsys) -> None:
    words = (f"prior={tmp_path / 'none'}", f"evaluation.clip=local-dir:{tmp_path}", f"output={tmp_path}")
    status, rows = report(capsys, "configs/quickstart.yaml", *words)
    prior, judge = named_row(rows, "prior.path"), named_row(rows, "evaluation.clip")
    assert status == 1 and named_row(rows, "disk").detail.endswith(str(tmp_path))
    assert (prior.state, prior.fix) == ("missing", "prior.path=FOLDER")
    assert judge.state == "wrong" and "has no open_clip_config.json" in judge.detail
    assert models.resources_of(["prior=one", "prior.path=two"]).prior == "two"


PUBLISHED = "someone/a-model"


@pytest.mark.parametrize(
    ("cached", "resources", "state", "fix"),
    [
        ("/cache/unet/config.json", Resources(prior=PUBLISHED), "ok", ""),
        (None, Resources(prior=PUBLISHED), "missing", f"hf download {PUBLISHED}"),
        (
            None,
            Resources(prior=PUBLISHED, revision="abc"),
            "missing",
            f"hf download {PUBLISHED} --revision abc",
        ),
        (None, Resources(prior=PUBLISHED, allow_network=True), "-", ""),
    ],
)
def test_a_prior_on_the_hub(cached, resources: Resources, state, fix, monkeypatch) -> None:
    calls = []

    def cached_path(name, file, revision):
        calls.append((name, revision))
        return cached

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached_path)
    row = named_row(models.model_rows(resources), "prior.path")
    assert (row.state, row.fix) == (state, fix) and calls == [(PUBLISHED, resources.revision)]


def test_a_published_clip_is_downloaded_by_the_evaluation(capsys) -> None:
    status, rows = report(capsys, "evaluation.clip=ViT-L-14/openai")
    assert status == 0 and named_row(rows, "evaluation.clip").state == "-"


def test_a_prior_that_must_be_converted_first(repo_copy: Path) -> None:
    row = named_row(models.model_rows(models.resources_of(["configs/hyper-ingp-mvdream.yaml"])), "prior.path")
    assert row.state == "missing" and "amortized.priors.convert_mvdream" in row.fix


def test_shards(tmp_path: Path, capsys) -> None:
    folder = encoded(tmp_path / "shards")
    status, rows = report(capsys, f"text.shards=[{folder}]")
    assert status == 0 and named_row(rows, "text.shards").detail == f"{folder} has 23 prompts"
    status, rows = report(capsys, f"text.shards=[{tmp_path / 'none'}]")
    row = named_row(rows, "text.shards")
    assert status == 1 and row.state == "wrong" and row.detail.startswith(f"{tmp_path / 'none'} holds no")
    assert f"python -m corpora encode CORPUS --encoder FOLDER --output {tmp_path / 'none'}" in row.fix


@pytest.mark.parametrize("preset", cli.preset_paths(), ids=lambda path: path.stem)
def test_settings_have_the_values_that_training_reads(preset: Path) -> None:
    words = ["corpus=x", "text.shards=[a, 'b c']", "prior.revision=null"]
    run = load_config(RunConfig, preset, words)
    resources = models.resources_of([str(preset), *words])
    assert (resources.output, resources.prior, resources.revision) == (run.output, run.prior.path, None)
    assert resources.allow_network == run.prior.allow_network and resources.shards == run.text.shards
    assert (resources.clip or EvaluationConfig().clip) == run.evaluation.clip
