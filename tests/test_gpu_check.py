"""The GPU check continues after stages that fail or hang, and its report is complete after every stage."""

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks import bundle, gpu_check, timing
from benchmarks.gpu_check import Stage

ROOT = Path(__file__).resolve().parents[1]
WRITES = """
import json, sys
machine, rows = {{"device": "a card", "torch": "2"}}, [{{"a": 1}}, {{"b": [2]}}]
results = {{"machine": machine, "summary": "fine", "rows": rows}}
open(sys.argv[1], "w").write(json.dumps(results))
{then}
"""


def stage(folder: Path, name: str, then: str = "", limit_s: float = 20.0, writes: bool = True) -> Stage:
    code = WRITES.format(then=then) if writes else then
    command = (sys.executable, "-c", code, str(folder / f"{name}.json"))
    return Stage(name=name, title=f"Stage {name}", command=command, limit_s=limit_s)


def test_failing_and_hanging_stages_do_not_end_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_check, "GRACE_S", 0.2)
    stubborn = (
        "import signal, subprocess, time\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        "print('begun', subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    stages = [
        stage(tmp_path, "broken", "raise ValueError('it broke')", writes=False),
        stage(tmp_path, "slow", stubborn, limit_s=2.0),
        stage(tmp_path, "good"),
    ]
    stages_written: list[list[str]] = []
    write = gpu_check.write

    def checked(folder: Path, report: gpu_check.Report) -> None:
        write(folder, report)
        stages_written.append(list(json.loads((folder / "report.json").read_text())["stages"]))
        assert (folder / "report.md").read_text().startswith("# GPU check")

    monkeypatch.setattr(gpu_check, "write", checked)
    begun = time.monotonic()
    report = gpu_check.check(stages, tmp_path, "cpu")
    assert time.monotonic() - begun < 30
    assert stages_written == [[], ["broken"], ["broken", "slow"], ["broken", "slow", "good"]]
    broken, slow, good = report["stages"].values()
    assert broken["state"] == "failed, status 1" and "ValueError: it broke" in broken["output_tail"][-1]
    assert (broken["summary"], broken["rows"]) == ("ValueError: it broke", [])
    # Results from before the limit remain, and all child processes end.
    assert slow["state"] == "stopped at its limit" and slow["rows"] == [{"a": 1}, {"b": [2]}]
    child = int(slow["output_tail"][-1].split()[1])
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]
    assert good["state"] == "passed" and good["output_tail"] == []
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["machine"]["device"] == "a card" and report["machine"]["torch"] == "2"
    assert "date" in report["machine"] and all("machine" in part for part in report["stages"].values())
    text = (tmp_path / "report.md").read_text()
    assert "| slow | stopped at its limit |" in text and "ValueError: it broke" in text
    assert "| a |\n| --- |\n| 1 |" in text  # lists are in the JSON only


def test_results_of_an_earlier_run_are_not_reused(tmp_path: Path):
    gpu_check.check([stage(tmp_path, "one")], tmp_path, "cpu")
    report = gpu_check.check([stage(tmp_path, "one", "pass", writes=False)], tmp_path, "cpu")
    assert report["stages"]["one"]["rows"] == []


def test_the_limits_of_all_stages_fit_into_the_total(tmp_path: Path):
    for device, seconds in (("cuda", 480), ("cpu", 300)):
        stages = gpu_check.stages_for(device, tmp_path)
        assert [part.name for part in stages] == ["machine", "tests", "quickstart", "steps", "throughput"]
        assert sum(part.limit_s for part in stages) <= seconds
        modules = [part.command[2] for part in stages if part.command[2].startswith("benchmarks.")]
        assert len(modules) == 4
        for module in modules:
            assert (ROOT / f"{module.replace('.', '/')}.py").exists()


def test_results_of_pytest_are_counted(tmp_path: Path):
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no CUDA device')\ndef test_c(): pass\n"
    )
    plain = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    subprocess.run([*plain, str(tests), f"--junitxml={tmp_path / 'tests.xml'}"], capture_output=True)
    results = gpu_check.load_results("tests", tmp_path)
    assert results["summary"] == "1 passed, 1 failed, 1 skipped" and not results["all skipped"]
    assert [(row["outcome"], row["reason"]) for row in results["rows"]] == [
        ("failed", "assert 1 == 2"),
        ("skipped", "no CUDA device"),
    ]
    subprocess.run(
        [*plain, str(tests), "-k", "test_c", f"--junitxml={tmp_path / 'tests.xml'}"], capture_output=True
    )
    results = gpu_check.load_results("tests", tmp_path)
    assert results["summary"] == "1 of 1 skipped: no CUDA device" and results["all skipped"]


def test_a_check_whose_tests_are_all_skipped_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    suite = '<testsuite><testcase name="a"><skipped message="no CUDA device"/></testcase></testsuite>'
    code = f"open({str(tmp_path / 'tests.xml')!r}, 'w').write({suite!r})"
    only = Stage(name="tests", title="Tests", command=(sys.executable, "-c", code), limit_s=20.0)
    report = gpu_check.check([only], tmp_path, "cuda")
    assert report["stages"]["tests"]["state"] == "skipped"
    monkeypatch.setattr(gpu_check, "stages_for", lambda *_: [only])
    assert gpu_check.main(["--output", str(tmp_path)]) == 1


def test_an_unknown_stage_is_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        gpu_check.main(["--stages", "steps,splats"])
    assert "unknown stage splats; choose from machine, tests" in capsys.readouterr().err


def test_the_check_needs_only_the_standard_library():
    code = (
        "import sys; import benchmarks.gpu_check\n"
        "assert not {'torch', 'numpy', 'yaml'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_results_file_is_valid_json_after_every_row(tmp_path: Path):
    results_file = timing.ResultsFile(tmp_path / "results.json", {"device": "a card"})
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == []
    results_file.add({"loss": float("nan"), "parts": {"a": float("inf")}})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert results["rows"] == [{"loss": "nan", "parts": {"a": "inf"}}]


# ---- the bundle -------------------------------------------------------------------------------


def test_the_lock_pins_every_bundled_package():
    pins = bundle.locked(list(bundle.PACKAGES))
    assert len(pins) == len(bundle.PACKAGES) and all("==" in pin for pin in pins)


def test_only_missing_packages_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    for name in ("torch", "missing_thing"):  # torch is installed: its wheel must not replace it
        with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            metadata = f"{name}-1.0.dist-info"
            wheel.writestr(f"{name}/__init__.py", "")
            wheel.writestr(f"{metadata}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(
                f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{metadata}/RECORD", "")
    monkeypatch.setattr(bundle, "WHEELS", wheels)
    monkeypatch.setattr(bundle, "SITE", site)
    monkeypatch.setattr(bundle, "PACKAGES", {"torch": "torch", "missing-thing": "missing_thing"})
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert bundle.install() == 0
    assert (site / "missing_thing" / "__init__.py").exists() and not (site / "torch").exists()
    assert bundle.install() == 0  # the second time there is nothing to unpack
    monkeypatch.setattr(bundle, "PACKAGES", {"not-there": "not_there"})
    assert bundle.install() == 1 and "not-there cannot be imported" in capsys.readouterr().err
