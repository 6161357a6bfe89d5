"""The page of a run: its states, what it shows, what it costs, and what it survives."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from amortized.monitoring import TrainingStopped
from amortized.monitoring.run_html import Event, Facts, Snapshot, run_html
from amortized.monitoring.run_page import EVENTS, POINTS, PREVIEWS, RunPage
from amortized.pages import Picture
from tests.pages.chromium import check_fits_and_is_readable, launched, opened_page
from tests.pages.html import HOSTILE, parse, structure
from tests.training.toy import inject_failure, interrupted_at, make_trainer

STATES = ("training", "finished", "stopped", "failed")


def read(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def state_of(html: str) -> str:
    (state,) = re.findall(r'<span class="status (\w+)">', html)
    assert ('http-equiv="refresh"' in html) == (state == "training")
    return state


def snapshot(text: str = "a note", **changes) -> Snapshot:
    values = {
        "status": "training",
        "step": 3,
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "step_s": 0.5,
        "trained_s": 90.0,
        "latest": {"loss": 0.25, "opacity": 0.3},
        "curves": {"loss": [(1, 2.0), (2, 1.0)], f"learning_rate/{text}": [(1, 2.0), (2, 1.0)]},
        "previews": {3: Picture(path="previews/step_000003.png", width=64, height=92)},
        "events": [Event(time=text, step=3, note=text)],
        "reason": text,
    }
    return Snapshot(**{**values, **changes})


def facts(text: str = "run") -> Facts:
    commands = {"resume": f"amortized train {text}", "evaluate": f"amortized evaluate {text}"}
    return Facts(name=text, steps=9, config_yaml=f"output: {text}\n", started_in=text, **commands)


# ---- as HTML ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_changes_no_element(text):
    for status in STATES:
        html = run_html(facts(text), snapshot(text, status=status))
        assert structure(html) == structure(run_html(facts(), snapshot(status=status)))
        html.encode("utf-8")
        assert len(html) < 150_000
        assert "<script" not in html and "script-src &#x27;none&#x27;" in html


@pytest.mark.parametrize("status", STATES)
def test_the_page_names_the_command_to_continue_with(status):
    html = run_html(facts(), snapshot(status=status, reason="the reason"))
    assert state_of(html) == status
    (command,) = re.findall(r'<pre class="command"[^>]*>(.*?)</pre>', html)
    assert command == ("amortized evaluate run" if status == "finished" else "amortized train run")
    assert ("the reason" in html) == (status in ("stopped", "failed"))
    assert ("3 s" in html) == (status == "training")  # 6 steps of 0.5 s


def test_a_page_fits_and_is_readable(tmp_path):
    for browser in launched():
        for status in STATES:
            Image.new("RGB", (600, 92)).save(tmp_path / "step_000003.png")
            previews = {step: Picture(path="step_000003.png", width=600, height=92) for step in (3, 2, 1)}
            long = "x" * 3000 if status == "failed" else "a note"
            page = run_html(facts(long), snapshot(long, status=status, previews=previews))
            (tmp_path / "index.html").write_text(page, encoding="utf-8")
            check_fits_and_is_readable(browser, tmp_path / "index.html")


def test_the_page_loads_itself_again_until_the_run_has_ended(tmp_path):
    path, loads = tmp_path / "index.html", []
    for browser in launched():
        path.write_text(run_html(facts(), snapshot(every_s=1.0)), encoding="utf-8")
        (tmp_path / "previews").mkdir()
        Image.new("RGB", (64, 92)).save(tmp_path / "previews/step_000003.png")
        with opened_page(browser, path) as tab:
            tab.on("load", lambda _: loads.append(1))
            path.write_text(run_html(facts(), snapshot(status="finished")), encoding="utf-8")
            for _ in range(60):
                tab.wait_for_timeout(50)
                if tab.title().startswith("Finished"):
                    break
            assert tab.title() == "Finished · run" and loads == [1]
            tab.wait_for_timeout(1300)
            assert loads == [1]


# ---- in a training ----------------------------------------------------------------------------


def test_a_run_ends_as_finished_stopped_or_failed(tmp_path, capfd):
    make_trainer(tmp_path / "a", steps=4, monitoring={"preview_every": 2}).train()
    html = read(tmp_path / "a")
    assert state_of(html) == "finished"
    assert capfd.readouterr().out.count(f"{tmp_path}/a/index.html") == 1
    pictures = [a["src"] for tag, a in parse(html).elements if tag == "img"]
    assert pictures == ["previews/step_000004.png", "previews/step_000002.png"]
    assert all((tmp_path / "a" / path).is_file() for path in pictures)

    assert interrupted_at(make_trainer(tmp_path / "b", steps=4), 2).train(quiet=True) == 2
    assert state_of(read(tmp_path / "b")) == "stopped"
    make_trainer(tmp_path / "b", steps=4).train(quiet=True)  # resumed
    assert state_of(read(tmp_path / "b")) == "finished"

    with pytest.raises(TrainingStopped):
        inject_failure(make_trainer(tmp_path / "c", steps=4), 0, 2, "nan").train(quiet=True)
    html = read(tmp_path / "c")
    assert state_of(html) == "failed" and "not finite" in html and 'role="alert">step 3:' in html
    assert (tmp_path / "c/stopped").exists() and "KEY=VALUE --resume changed</pre>" in html
    with pytest.raises(ZeroDivisionError):
        inject_failure(make_trainer(tmp_path / "d", steps=4), 0, 2, "defect").train(quiet=True)
    html = read(tmp_path / "d")
    assert "ZeroDivisionError: a defect" in html and f"output={tmp_path}/d</pre>" in html


def test_the_page_exists_from_the_start_and_follows(tmp_path):
    trainer = make_trainer(tmp_path, steps=4, checkpointing={"every": 2})
    plain, states = trainer.step, []

    def step(number, interrupted):
        html = read(tmp_path)
        states.append((state_of(html), re.findall(r"<title>(.*?)%? ·", html)[0].strip()))
        return plain(number, interrupted=interrupted)

    trainer.step = step
    trainer.train(quiet=True)
    assert states == [("training", "0"), ("training", "0"), ("training", "50"), ("training", "50")]


def test_a_resumed_run_shows_the_steps_before_but_not_those_that_run_again(tmp_path):
    settings = {"steps": 6, "checkpointing": {"every": 2}, "monitoring": {"preview_every": 1}}
    assert interrupted_at(make_trainer(tmp_path, **settings), 4).train(quiet=True) == 4
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 5, "loss": 1e9}\n{"step": 99, "loss": 1e9}\nnot ours\n')
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('[1]\n{"step": 4, "time": "t", "note": "from before"}\n{"step": "x"}\n{"no')
    for name in ("step_000009.png", "other.png"):
        (tmp_path / "previews" / name).write_bytes((tmp_path / "previews/step_000001.png").read_bytes())
    (tmp_path / "previews/step_000003.png").unlink()
    (tmp_path / "previews/step_000003.png").symlink_to("/etc/hostname")
    trainer, pages = make_trainer(tmp_path, **settings), []
    plain = trainer.step
    trainer.step = lambda n, interrupted: (pages.append(read(tmp_path)), plain(n, interrupted=interrupted))[1]
    trainer.train(quiet=True)
    first = pages[0]
    assert "from before" in first and "1e+09" not in first and "1.00e+09" not in first
    shown = re.findall(r"<figcaption>Step (\d)</figcaption>", first)
    # The overview of step 3 is a link; a strip of a prompt stands in for it.
    assert shown == ["4", "3", "2", "1"] and "step_000003-" in first and "step_000009" not in first
    points = re.findall(r'<polyline class="line-0" points="([^"]*)"', first)[0].split()
    assert len(points) == 4


def fill(page: RunPage, steps: int) -> None:
    for step in range(1, steps + 1):
        page.add(step, {"loss": 1 / step, "opacity": 0.5, "gradient_norm": 1.0, "time/forward": 0.5})
        page.advance(step)


def test_a_long_run_costs_no_more_than_a_short_one(tmp_path, monkeypatch):
    page = RunPage(tmp_path, facts(), 0)
    fill(page, 50_000)
    for step in range(1, 3000):
        page.event("t", step, f"event {step}")
        page.preview(tmp_path / f"previews/step_{step:06d}.png")
    opened = []
    plain = os.open
    monkeypatch.setattr(os, "open", lambda path, *a, **k: (opened.append(str(path)), plain(path, *a, **k))[1])
    start = time.perf_counter()
    page.write()
    assert time.perf_counter() - start < 1
    assert len(opened) < PREVIEWS + 9 and not [path for path in opened if "log.jsonl" in path]
    html = read(tmp_path)
    assert len(html) < 150_000 and html.count("<li><span>") == EVENTS
    lines = re.findall(r'points="([^"]*)"/></svg></div>', html)
    assert [len(line.split()) for line in lines] == [POINTS] * 3
    assert "6 h 57 min" in html  # 50,000 times 0.5 s


def test_numbers_of_another_kind_do_not_stop_a_run(tmp_path):
    page = RunPage(tmp_path, facts(), 0)
    for step, value in enumerate([float("nan"), "x", None, 10**400, [1], 1e300, True, 0.5, 0.25], 1):
        page.add(step, {"loss": value, "learning_rate/<b>": value})
    page.add(10**400, {"loss": 1.0})
    page.write()
    assert "0.250" in read(tmp_path)


@pytest.mark.parametrize("content", ["mine", "<!doctype html><title>mine</title>", ""])
def test_a_page_that_a_run_did_not_write_is_left_alone(tmp_path, capfd, content):
    (tmp_path / "index.html").write_text(content)
    assert make_trainer(tmp_path, steps=2).train() == 2
    assert read(tmp_path) == content
    assert capfd.readouterr().out.count("cannot write index.html (") == 1


def test_a_defect_of_the_page_does_not_stop_a_run(tmp_path, capfd, monkeypatch):
    def broken(facts, now):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("amortized.monitoring.run_page.run_html", broken)
    assert make_trainer(tmp_path, steps=2).train() == 2
    assert capfd.readouterr().out.count("cannot write index.html (a defect)") == 1
    notes = [json.loads(line)["note"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert sum("index.html failed in this run" in note for note in notes) == 1
