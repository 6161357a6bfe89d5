"""The example of docs/extending.md: one file and two lines, copied from the page, train a generator."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

USE = """
import sys
from pathlib import Path

import torch
from amortized.config import load_config
from tests.training.toy import COLORS, TEXTS, make_trainer
from amortized.commands.compose import RunConfig

given = ["output=o", "corpus=shapes16", "prior=p", "generator.name=film", "generator.width=16"]
config = load_config(RunConfig, None, given).generator
generator = config.build(len(TEXTS))
trainer = make_trainer(Path(sys.argv[1]), steps=100, generator=generator)
trainer.train(quiet=True)
text = trainer.bank.generator_text(list(TEXTS))
points = torch.rand(3, 20, 3) - 0.5
batched = generator(text).sdf(points)
single = [generator(trainer.bank.generator_text([name])).sdf(points[[i]]) for i, name in enumerate(TEXTS)]
torch.testing.assert_close(batched, torch.cat(single), rtol=1e-4, atol=1e-5)
chosen = generator(text).select(1).sdf_and_albedo(points[[1]])
for values, row in zip(chosen, generator(text).sdf_and_albedo(points)):
    torch.testing.assert_close(values, row[[1]])
albedo = generator(text).sdf_and_albedo(points)[1].mean(dim=1)  # [P, 3]
colors = torch.tensor([COLORS[name] for name in TEXTS])
assert torch.cdist(albedo, colors).argmin(dim=1).tolist() == [0, 1, 2], albedo
"""


def test_worked_example(tmp_path: Path):
    page = (ROOT / "docs" / "extending.md").read_text()
    file, table_lines = re.search(
        r"^```python\n(.*?)^```.*?^```python\n(.*?\n)```", page, re.MULTILINE | re.DOTALL
    ).groups()
    name = file.splitlines()[0].removeprefix("# ")
    for folder in ("amortized", "generators", "corpora", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / name).write_text(file)
    register(tmp_path / "generators" / "__init__.py", *filter(None, table_lines.splitlines()))
    result = subprocess.run(
        [sys.executable, "-c", USE, "run"], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr[-2000:]
    for action in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *action, "--config", str(ROOT / "pyproject.toml"), name]
        styled = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert styled.returncode == 0, styled.stdout


def register(table: Path, import_line: str, union: str) -> None:
    """Add the import, and replace the union by one that begins with the current members."""
    text = table.read_text()
    (current,) = re.findall(r"^GeneratorConfig = .*$", text, re.MULTILINE)
    assert union.startswith(f"{current} | ")
    first_import = "from generators.conv3d import"
    assert text.count(first_import) == 1
    table.write_text(text.replace(current, union).replace(first_import, f"{import_line}\n{first_import}"))
