"""A newcomer's path: a fresh clone, and every command of the README typed as printed, in order.

`pytest -m slow tests/commands/test_newcomer.py` takes this environment as the clone's .venv; with FRESH=1 the
clone installs its own, which downloads gigabytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rooms import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def readme_script(text: str) -> str:
    """The README's fenced blocks as one script; stops at the first command that fails."""
    lines = ["set -eo pipefail"]
    for language, block in re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text):
        # `make test` inside of a test would run the whole suite: only that it starts.
        block = re.sub(r"(?m)^make test\b", "make -n test", block)
        # It serves until Ctrl-C.
        block = re.sub(r"(?m)^amortized view\b", "timeout --preserve-status --signal=INT 20 \\g<0>", block)
        lines.append(f"python - <<'PYTHON'\n{block}PYTHON" if language == "python" else block)
    return "\n".join(lines)


def bash(script: str, folder: Path) -> str:
    """Run a script in a new shell without an activated environment, and return its standard output."""
    environment = {key: os.environ[key] for key in ("HOME", "TMPDIR", "LANG") if key in os.environ}
    environment |= {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    environment["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the last commit with an environment, unless FRESH is set."""
    folder = tmp_path_factory.mktemp("newcomer") / "Amortized3D"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    if not os.environ.get("FRESH"):
        borrow_environment(folder / ".venv")
    return folder


def borrow_environment(folder: Path) -> None:
    """An environment with the packages of this one, and the commands of the clone."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for path in map(Path, sys.path):
        if path.name == "site-packages":
            (site / "borrowed.pth").write_text(f"{path}\n")
    # The clone comes before the project that is installed there.
    (site / "clone.pth").write_text(f"import sys; sys.path.insert(0, {str(folder.parent)!r})\n")
    for name in ("amortized", "torchrun"):
        script = shutil.which(name, path=str(Path(sys.executable).parent))
        assert script is not None
        body = Path(script).read_text().partition("\n")[2]
        (folder / "bin" / name).write_text(f"#!{folder / 'bin/python'}\n{body}")
        (folder / "bin" / name).chmod(0o755)
    (folder / ".installed").touch()


def test_the_commands_of_the_readme_in_order(clone: Path) -> None:
    shown = bash(readme_script((clone / "README.md").read_text()), clone)
    pages = re.findall(r"file://(\S+/index\.html)", shown)
    assert pages and all(Path(page).is_file() for page in pages)
    for run in ("quickstart", "mine"):
        results = json.loads((clone / "outputs" / run / "evaluation/results.json").read_text())
        metrics = {name: metric["mean"] for name, metric in results["metrics"].items()}
        assert metrics["recall_at_1"] > 0.9 and metrics["iou"] > 0.8, (run, metrics)
    assert (
        list((clone / "generated").rglob("*.png")) and (clone / "exported/mine/model.safetensors").is_file()
    )


def test_the_last_line_of_the_quickstart(clone: Path) -> None:
    """`make quickstart` resumes, evaluates again, and prints a command that works when pasted."""
    lines = bash("make quickstart", clone).splitlines()
    assert lines[-1].startswith("Next: ")
    bash(lines[-1].removeprefix("Next: "), clone)


def test_from_another_folder(clone: Path, tmp_path: Path) -> None:
    """Presets and embedded models are found beside the package; results are written here."""
    activate = f". {clone}/.venv/bin/activate"
    bash(f"{activate}; amortized train configs/quickstart.yaml trainer.steps=2 output=here", tmp_path)
    bash(f"{activate}; amortized evaluate here --limit 2", tmp_path)
    bash(f"{activate}; amortized generate {clone}/outputs/quickstart 'a red cube'", tmp_path)
    bash(f"{activate}; amortized doctor configs/quickstart.yaml", tmp_path)
    assert list(tmp_path.glob("here/evaluations/limit-2-*/index.html"))
    assert list(tmp_path.glob("generated/*.png"))
