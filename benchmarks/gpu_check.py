"""Report the first minutes on a GPU: tests, quickstart, training steps and throughput.

    python -m benchmarks.gpu_check [--device cpu] [--stages tests,steps] [--output DIR]

Stages run one after another, each in a separate process with a time limit, 8 minutes in total. If one fails
or times out, the report shows its last output lines and the next one starts. DIR/report.json and
DIR/report.md are complete after every stage. On a CPU the same stages run at tiny sizes. Standard library
only, so that even a machine on which nothing else works gets a report.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amortized.files import atomic_write_text
from benchmarks import bundle

ROOT = Path(__file__).resolve().parents[1]
MAX_OUTPUT_LINES = 25  # of a stage, in the report
GRACE_S = 5.0  # between the signals that end a stage
Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command that writes DIR/NAME.json (rows, summary, machine), or pytest's DIR/NAME.xml."""

    name: str
    title: str
    command: tuple[str, ...]
    limit_s: float


def stages_for(device: str, folder: Path) -> list[Stage]:
    """Return the stages in order. Their limits sum to at most 8 minutes on a GPU, 5 on a CPU."""
    on_cuda = device != "cpu"
    limits = {"machine": 25, "tests": 90, "quickstart": 110, "steps": 185, "throughput": 50}
    if not on_cuda:
        limits = {"machine": 25, "tests": 90, "quickstart": 75, "steps": 70, "throughput": 40}

    def benchmark(name: str, title: str, *more: str) -> Stage:
        modules = {"machine": "ceilings", "quickstart": "quickstart_check", "steps": "sd_steps"}
        command = (sys.executable, "-m", f"benchmarks.{modules.get(name, name)}", f"--device={device}")
        output = f"--output={folder / name}.json"
        return Stage(name=name, title=title, command=(*command, output, *more), limit_s=limits[name])

    # Workers share the GPU: a test uses little of it, and starting Python takes longest.
    shared = on_cuda and (os.cpu_count() or 1) >= 12 and find_spec("xdist") is not None
    workers = ("-n", "6") if shared else ()
    tests = (
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-m",
        "gpu",
        "tests/gpu",
        "-p",
        "no:cacheprovider",
        f"--junitxml={folder / 'tests'}.xml",
        *workers,
    )
    # A stage that takes --limit gets slightly less than the limit at which it is killed.
    return [
        benchmark("machine", "Machine and its peak speeds"),
        Stage(name="tests", title="pytest -m gpu", command=tests, limit_s=limits["tests"]),
        benchmark(
            "quickstart", "The quickstart, trained and evaluated", f"--limit={limits['quickstart'] - 10}"
        ),
        benchmark(
            "steps",
            "Training steps at full size",
            f"--limit={limits['steps'] - 35 * on_cuda - 20 * (not on_cuda)}",
        ),
        benchmark("throughput", "Hash grids and the renderer"),
    ]


def environment(device: str) -> dict[str, str]:
    """Return the environment of the stages: project and bundle importable, the network unused."""
    paths = [str(ROOT), *([str(bundle.SITE)] if bundle.SITE.is_dir() else [])]
    path = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    # At tiny sizes one thread is faster, and less disturbed by other processes.
    threads = {} if device != "cpu" else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return (
        os.environ
        | threads
        | {
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "GPU_TESTS_ON": device,
        }
    )


def run(stage: Stage, folder: Path, device: str) -> Report:
    """Run a stage; return its state, seconds, results, and the tail of its output if it failed."""
    for kind in ("json", "xml"):
        (folder / f"{stage.name}.{kind}").unlink(missing_ok=True)
    log, start = folder / f"{stage.name}.log", time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            stage.command,
            cwd=ROOT,
            env=environment(device),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = process.wait(stage.limit_s)
            state = "passed" if status == 0 else f"failed, status {status}"
        except subprocess.TimeoutExpired:
            state = "stopped at its limit"
        finally:
            terminate(process)  # with its children
    results = load_results(stage.name, folder)
    if state == "passed" and results.pop("all skipped", False):
        state = "skipped"
    # Progress bars overwrite their line: only the last version counts.
    lines = [line.split("\r")[-1] for line in log.read_text(errors="replace", encoding="utf-8").split("\n")]
    lines = [line for line in lines if line.strip()]
    if state != "passed" and not results["rows"] and lines:
        results["summary"] = lines[-1][:160]
    return {
        "title": stage.title,
        "state": state,
        "seconds": round(time.perf_counter() - start, 1),
        "limit_s": stage.limit_s,
        **results,
        "output_tail": [] if state in ("passed", "skipped") else lines[-MAX_OUTPUT_LINES:],
    }


def terminate(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, first with SIGINT, after which pytest still writes its report."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def load_results(name: str, folder: Path) -> Report:
    """Return the rows, summary and machine that a stage wrote, perhaps before it was stopped."""
    if (file := folder / f"{name}.json").exists():
        results = json.loads(file.read_text(encoding="utf-8"))
        return results | {"summary": results["summary"] or f"{len(results['rows'])} rows before it stopped"}
    if (file := folder / f"{name}.xml").exists():
        return parse_pytest_report(file)
    return {"summary": "no results", "rows": []}


def parse_pytest_report(file: Path) -> Report:
    """Return the counts of outcomes, and a row for each test that did not pass."""
    rows, counts = [], {"passed": 0, "failed": 0, "skipped": 0}
    for case in ElementTree.parse(file).iter("testcase"):
        notes = {note.tag: note for note in case if note.tag in ("failure", "error", "skipped")}
        state = "passed" if not notes else "skipped" if "skipped" in notes else "failed"
        counts[state] += 1
        for note in notes.values():
            reason = (note.get("message") or "").strip().splitlines() or [""]
            name = f"{case.get('classname', '').removeprefix('tests.gpu.')}.{case.get('name')}"
            rows.append({"test": name, "outcome": state, "reason": reason[0][:200]})
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no test ran"
    reasons = {row["reason"] for row in rows}
    if counts["skipped"] == sum(counts.values()) and len(reasons) == 1:
        summary = f"{counts['skipped']} of {counts['skipped']} skipped: {reasons.pop()}"
    return {"summary": summary, "rows": rows, "all skipped": counts["skipped"] == sum(counts.values())}


def write(folder: Path, report: Report) -> None:
    """Write both files, each atomically."""
    atomic_write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    atomic_write_text(folder / "report.md", as_text(report))


def as_text(report: Report) -> str:
    """Return the report as Markdown: an overview of the stages, then the results of each."""
    machine = ", ".join(f"{key}: {value}" for key, value in report["machine"].items())
    parts = [f"# GPU check ({report['device']})\n", f"{machine}\n", overview(report)]
    for stage in report["stages"].values():
        parts.append(f"\n## {stage['title']}\n\n{stage['state']}; {stage['summary']}\n")
        # Dicts and lists are in the JSON only.
        rows = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in stage["rows"]]
        if rows:
            parts.append(table(rows))
        if stage["output_tail"]:
            parts.append("\n".join(["\n```", *stage["output_tail"], "```\n"]))
    return "\n".join(parts) + "\n"


def overview(report: Report) -> str:
    """Return a table with a row per stage."""
    return table(
        [
            {
                "stage": name,
                "state": stage["state"],
                "s": stage["seconds"],
                "limit, s": stage["limit_s"],
                "summary": stage["summary"],
            }
            for name, stage in report["stages"].items()
        ]
    )


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table; missing cells are empty."""
    head = list(dict.fromkeys(name for row in rows for name in row))
    cells = [["" if row.get(name) is None else str(row.get(name)) for name in head] for row in rows]
    cells = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *cells]) + "\n"


def check(stages: Sequence[Stage], folder: Path, device: str) -> Report:
    """Run the stages and rewrite the report after each."""
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    report: Report = {"device": device, "machine": {"device": "unknown", "date": date}, "stages": {}}
    write(folder, report)
    for stage in stages:
        print(f"{stage.title}: at most {stage.limit_s:.0f} s ...", flush=True)
        outcome = run(stage, folder, device)
        report["stages"][stage.name] = outcome
        if report["machine"]["device"] == "unknown":
            report["machine"] |= outcome.get("machine", {})
        outcome.setdefault("machine", report["machine"])
        write(folder, report)
        print(f"  {outcome['state']} after {outcome['seconds']} s; {outcome['summary']}", flush=True)
    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [stage.name for stage in stages_for("cpu", Path())]
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--stages", default=",".join(names), help="%(default)s; the first always runs")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-check"))
    args = parser.parse_args(argv)
    requested = {names[0], *args.stages.split(",")}
    if unknown := requested - set(names):
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    bundle.install()  # missing packages are printed, and the stages that need them fail
    folder = args.output.resolve()
    chosen = [stage for stage in stages_for(args.device, folder) if stage.name in requested]
    report = check(chosen, folder, args.device)
    written = (folder / "report.md").read_text(encoding="utf-8")
    print(f"\n{written}\nwritten to {folder}/report.json and report.md")
    return int(any(stage["state"] != "passed" for stage in report["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
