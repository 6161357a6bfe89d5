"""The page that `amortized generate` writes: complete after every end of a call, never over another file."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from amortized.commands import generated
from amortized.commands.main import main
from tests.pages.html import parse

QUICK = ("--size", "16", "--views", "2", "--frames", "2")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "my objects"


@pytest.fixture
def generate(run, trained, folder):
    """Calls generate for the run, with small pictures, into `folder`."""
    return lambda *arguments: run(
        "amortized", "generate", str(trained), *QUICK, *arguments, "--output", str(folder)
    )


def prompts_on(page: Path) -> list[str]:
    return [words for tag, words in parse(page.read_text(encoding="utf-8")).texts if tag == "bdi"][1:]


def test_it_prints_where_the_page_is_and_the_command_that_shows_it(generate, folder):
    done = generate("a red cube")
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert (
        line == f"page: {folder}/index.html (in a browser: {shlex.join(['amortized', 'view', str(folder)])})"
    )
    assert prompts_on(folder / "index.html") == ["a red cube"]


def test_all_calls_into_a_folder_are_on_its_page(generate, folder):
    assert generate("a", "b", "--format", "png").returncode == 0
    assert generate("b", "c", "--seeds", "2", "--format", "png").returncode == 0
    assert generate("--interpolate", "a", "d").returncode == 0
    assert prompts_on(folder / "index.html") == ["a", "b", "b", "c", "c", "a", "d"]
    # The same command again makes nothing but a page that is missing, as in a folder of an earlier version.
    (folder / "index.html").unlink()
    assert "skipped" in generate("a", "b", "--format", "png").stdout
    assert len(prompts_on(folder / "index.html")) == 7


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()]
)
def test_after_an_end_by_ctrl_c_or_an_error_the_page_has_what_was_made(
    generate, trained, folder, monkeypatch, error
):
    from amortized.generation import pictures

    save, calls = pictures.save_png, []

    def fail_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise error
        save(*arguments)

    monkeypatch.setattr(pictures, "save_png", fail_third)
    command = [
        "generate",
        str(trained),
        *QUICK,
        "a",
        "b",
        "c",
        "d",
        "--format",
        "png",
        "--output",
        str(folder),
    ]
    try:
        assert main(command) != 0
    except SystemExit as exit:
        assert exit.code != 0
    assert prompts_on(folder / "index.html") == ["a", "b"]


def test_the_page_of_a_long_call_grows_with_the_index(folder, monkeypatch):
    folder.mkdir()
    clock = [0.0]
    monkeypatch.setattr(generated.time, "monotonic", lambda: clock[0])
    with generated.open_index(folder) as index:
        for second in range(12):
            clock[0] = float(second)
            (folder / f"{second}.png").write_bytes(b"")
            record = {"file": f"{second}.png", "model": "m", "settings": {}}
            index.add(f"{second}", {"prompt": f"p{second}", "seed": 0}, {"png": record})
        assert prompts_on(folder / "index.html") == [f"p{second}" for second in range(12)]


def test_an_index_html_of_others_stays_and_the_objects_are_made(generate, folder):
    folder.mkdir()
    (folder / "index.html").write_text("<p>mine")
    done = generate("a", "--format", "png")
    assert done.returncode == 0 and "1 object in" in done.stdout
    (note,) = [line for line in done.stdout.splitlines() if "page" in line]
    assert note.startswith("note: there is no page: ") and "rename it" in note
    assert (folder / "index.html").read_text() == "<p>mine"
    assert json.loads((folder / "index.json").read_text())[0]["prompt"] == "a"


def test_an_interrupted_first_object_leaves_no_page(generate, folder, monkeypatch):
    monkeypatch.setattr(
        "amortized.generation.pictures.save_png", lambda *_: (_ for _ in ()).throw(OSError(5, "x"))
    )
    assert generate("a", "--format", "png").returncode == 2
    assert not (folder / "index.html").exists()
