"""The first minutes on a GPU: tests, quickstart, training steps and throughput, in one report.

    python -m benchmarks.gpu_check [--device cpu] [--stages tests,steps] [--output DIR]

Stages run one after another, each in a separate process with a time limit, 8 minutes together; one that
fails or takes too long is told with its last words, and the next one begins. DIR/report.json and
DIR/report.md are whole after every stage. On a CPU the same way is walked at tiny sizes. Standard library
only, so that a machine on which nothing else works still gets its report.
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
LAST_LINES = 25  # of a stage's output, in the report
GRACE_S = 5.0  # between asking a stage to end and ending it
Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command that writes DIR/NAME.json (rows, a summary, the machine), or DIR/NAME.xml of pytest."""

    name: str
    title: str
    command: tuple[str, ...]
    limit_s: float


def stages_for(device: str, folder: Path) -> list[Stage]:
    """The stages in their order; on a GPU 8 minutes together."""
    on_cuda = device != "cpu"
    limits = {"machine": 25, "tests": 90, "quickstart": 110, "steps": 185, "throughput": 50}
    if not on_cuda:
        limits = {"machine": 25, "tests": 90, "quickstart": 75, "steps": 70, "throughput": 40}

    def measured(name: str, title: str, *more: str) -> Stage:
        modules = {"machine": "ceilings", "quickstart": "quickstart_check", "steps": "sd_steps"}
        command = (sys.executable, "-m", f"benchmarks.{modules.get(name, name)}", f"--device={device}")
        output = f"--output={folder / name}.json"
        return Stage(name=name, title=title, command=(*command, output, *more), limit_s=limits[name])

    # Workers share the card: a test takes little of it, and starting Python takes longest.
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
    # A stage that limits itself gets slightly less than its limit.
    return [
        measured("machine", "What the machine is and can do"),
        Stage(name="tests", title="pytest -m gpu", command=tests, limit_s=limits["tests"]),
        measured("quickstart", "The quickstart, trained and judged", f"--limit={limits['quickstart'] - 10}"),
        measured(
            "steps",
            "Training steps at full size",
            f"--limit={limits['steps'] - 35 * on_cuda - 20 * (not on_cuda)}",
        ),
        measured("throughput", "Hash grids and the renderer"),
    ]


def environment(device: str) -> dict[str, str]:
    """Of the stages: the project and its bundle can be imported, nothing asks the network."""
    own = [str(ROOT), *([str(bundle.SITE)] if bundle.SITE.is_dir() else [])]
    path = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    # Of tiny sizes one core is the faster, and the steadier beside other work.
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
    """The outcome of a stage: state, seconds, results, and the last lines of its output if it failed."""
    for kind in ("json", "xml"):
        (folder / f"{stage.name}.{kind}").unlink(missing_ok=True)
    log, begun = folder / f"{stage.name}.log", time.perf_counter()
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
            end(process)  # and what it has started
    found = found_by(stage.name, folder)
    if state == "passed" and found.pop("all skipped", False):
        state = "skipped"
    # Progress bars write over their own line.
    lines = [line.split("\r")[-1] for line in log.read_text(errors="replace").split("\n")]
    lines = [line for line in lines if line.strip()]
    if state != "passed" and not found["rows"] and lines:
        found["summary"] = lines[-1][:160]
    return {
        "title": stage.title,
        "state": state,
        "seconds": round(time.perf_counter() - begun, 1),
        "limit_s": stage.limit_s,
        **found,
        "last words": [] if state in ("passed", "skipped") else lines[-LAST_LINES:],
    }


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children: first by an interrupt, after which pytest still writes its report."""
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


def found_by(name: str, folder: Path) -> Report:
    """Rows, summary and machine that a stage left, whole or in part."""
    if (file := folder / f"{name}.json").exists():
        found = json.loads(file.read_text())
        return found | {"summary": found["summary"] or f"{len(found['rows'])} rows until then"}
    if (file := folder / f"{name}.xml").exists():
        return of_pytest(file)
    return {"summary": "nothing was written", "rows": []}


def of_pytest(file: Path) -> Report:
    """Counts, and a row for each test that did not pass."""
    rows, counts = [], {"passed": 0, "failed": 0, "skipped": 0}
    for case in ElementTree.parse(file).iter("testcase"):
        notes = {note.tag: note for note in case if note.tag in ("failure", "error", "skipped")}
        state = "passed" if not notes else "skipped" if "skipped" in notes else "failed"
        counts[state] += 1
        for note in notes.values():
            reason = (note.get("message") or "").strip().splitlines() or [""]
            name = f"{case.get('classname', '').removeprefix('tests.gpu.')}.{case.get('name')}"
            rows.append({"test": name, "outcome": state, "why": reason[0][:200]})
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no test was run"
    reasons = {row["why"] for row in rows}
    if counts["skipped"] == sum(counts.values()) and len(reasons) == 1:
        summary = f"{counts['skipped']} of {counts['skipped']} skipped: {reasons.pop()}"
    return {"summary": summary, "rows": rows, "all skipped": counts["skipped"] == sum(counts.values())}


def write(folder: Path, report: Report) -> None:
    """Both files, whole at any time."""
    atomic_write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    atomic_write_text(folder / "report.md", as_text(report))


def as_text(report: Report) -> str:
    """The report as Markdown: the stages, then the results of each."""
    machine = ", ".join(f"{key}: {value}" for key, value in report["machine"].items())
    parts = [f"# GPU check ({report['device']})\n", f"{machine}\n", overview(report)]
    for stage in report["stages"].values():
        parts.append(f"\n## {stage['title']}\n\n{stage['state']}; {stage['summary']}\n")
        # A dict or a list is for the JSON alone.
        rows = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in stage["rows"]]
        if rows:
            parts.append(table(rows))
        if stage["last words"]:
            parts.append("\n".join(["\n```", *stage["last words"], "```\n"]))
    return "\n".join(parts) + "\nSplats are not built yet: there is nothing to measure of them.\n"


def overview(report: Report) -> str:
    """A row for each stage."""
    return table(
        [
            {
                "stage": name,
                "state": stage["state"],
                "s": stage["seconds"],
                "limit, s": stage["limit_s"],
                "what": stage["summary"],
            }
            for name, stage in report["stages"].items()
        ]
    )


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Markdown; what a row lacks stays empty."""
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
        found = run(stage, folder, device)
        report["stages"][stage.name] = found
        if report["machine"]["device"] == "unknown":
            report["machine"] |= found.get("machine", {})
        found.setdefault("machine", report["machine"])
        write(folder, report)
        print(f"  {found['state']} after {found['seconds']} s; {found['summary']}", flush=True)
    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [stage.name for stage in stages_for("cpu", Path())]
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--stages", default=",".join(names), help="%(default)s; the first is always run")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-check"))
    given = parser.parse_args(argv)
    asked = {names[0], *given.stages.split(",")}
    if unknown := asked - set(names):
        parser.error(f"--stages knows {', '.join(names)}, not {', '.join(sorted(unknown))}")
    bundle.install()  # missing packages are printed, and the stages that need them fail
    folder = given.output.resolve()
    chosen = [stage for stage in stages_for(given.device, folder) if stage.name in asked]
    report = check(chosen, folder, given.device)
    print(f"\n{(folder / 'report.md').read_text()}\nwritten to {folder}/report.json and report.md")
    return int(any(stage["state"] != "passed" for stage in report["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
