"""The page and the command of all runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from amortized.commands.main import main
from amortized.runs import read_runs, write_page
from tests.pages.chromium import check_fits_and_is_readable, launched
from tests.pages.html import HOSTILE, parse, structure
from tests.runs.made import make_run
from tests.runs.test_status import hostile


def written(root: Path) -> str:
    page = root.parent / "runs.html"
    page.unlink(missing_ok=True)
    write_page(page, read_runs(root))
    return page.read_text(encoding="utf-8")


def two_runs(root: Path, text: str = "a red cube") -> Path:
    for name, rate in (("a", 0.001), ("b", 0.01)):
        folder = make_run(
            root / name, ending="failed", prompt=text, optimizer={"learning_rate": rate, text[:60]: name}
        )
        event = {"time": text, "step": 30, "note": text, "status": "failed"}
        with (folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")
    return root


def test_the_page_holds_everything_in_one_file(tmp_path):
    html = written(two_runs(tmp_path / "runs"))
    elements = parse(html).elements
    sources = [a.get("src") or a.get("href") for tag, a in elements if tag in ("img", "a", "link", "script")]
    assert all(one and one.startswith(("data:", "#")) for one in sources)
    pictures = [a for tag, a in elements if tag == "img"]
    assert len(pictures) == 2 and {(a["width"], a["height"]) for a in pictures} == {("64", "32")}
    assert "<script" not in html and "script-src &#x27;none&#x27;" in html
    assert html.count("<svg viewBox=") == 2  # loss and opacity, of both runs
    settings = html.partition('id="settings"')[2].partition("</section>")[0]
    assert re.findall(r'<th scope="row">([\w.]+)', settings)[0] == "optimizer.learning_rate"
    assert "0.001" in settings and "0.01" in settings and "trainer.steps" not in settings


@pytest.mark.parametrize("text", [one for one in HOSTILE if "\ud800" not in one and "\0" not in one])
def test_hostile_text_changes_no_element(tmp_path, text):
    assert structure(written(two_runs(tmp_path / "x", text))) == structure(written(two_runs(tmp_path / "y")))


def test_hostile_folders_have_a_row_each(tmp_path):
    hostile(tmp_path / "runs")
    html = written(tmp_path / "runs")
    parse(html)
    count = len(list((tmp_path / "runs").iterdir()))
    assert html.count('<article class="run"') == count and "root:x:" not in html


def test_the_page_fits_and_is_readable(tmp_path):
    two_runs(tmp_path / "runs", "a long prompt " * 20)
    make_run(tmp_path / "runs" / "group" / ("x" * 200), ending="finished")
    written(tmp_path / "runs")
    for browser in launched():
        check_fits_and_is_readable(browser, tmp_path / "runs.html")


def test_the_command(tmp_path, capfd):
    two_runs(tmp_path / "runs")
    page = tmp_path / "page.html"
    assert main(["runs", str(tmp_path / "runs"), "--json", "--page", str(page)]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [(row["name"], row["status"], row["step"], row["steps"]) for row in rows] == [
        ("a", "failed", 30, 100),
        ("b", "failed", 30, 100),
    ]
    assert page.exists()
    assert main(["runs", str(tmp_path / "runs"), "--page", str(page)]) == 0  # replaces its own
    assert "2 runs: 2 failed" in capfd.readouterr().out
    page.write_text("mine")
    for arguments in (
        ["runs", str(tmp_path / "none")],
        ["runs", str(tmp_path / "runs"), "--page", str(page)],
    ):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2 and capfd.readouterr().err.count("\n") == 1
    assert page.read_text() == "mine"
