"""`amortized convert`: a file to a folder that generate uses, mistakes in one sentence, and the old name."""

from __future__ import annotations

import torch

from tests.generation import scaledreamer_files as files


def test_a_checkpoint_becomes_a_folder_that_generate_uses(run, prior, tmp_path) -> None:
    file, folder = tmp_path / "AT2520_3dconv_net.pth", tmp_path / "at2520"
    torch.save({"state_dict": files.state_of(files.SMALL["3dconv-net"]())}, file)
    done = run("amortized", "convert", "scaledreamer", str(file), str(folder), "--corpus", "at2520")
    assert done.returncode == 0 and "a 3dconv-net" in done.stdout and not done.stderr, done
    made = ("a red cube", "--text-encoder", prior, "--output", str(tmp_path / "made"))
    small = ("--views", "1", "--size", "8", "--format", "png", "--device", "cpu")
    done = run("amortized", "generate", str(folder), *made, *small)
    assert done.returncode == 0 and len(list((tmp_path / "made").glob("*.png"))) == 1, done
    again = run("amortized", "convert", "scaledreamer", str(file), str(folder), "--corpus", "at2520")
    assert again.returncode == 2 and "at2520 exists: choose another folder" in again.stderr


def test_mistakes_are_one_sentence(run, tmp_path) -> None:
    good, cut, other = (tmp_path / name for name in ("good.pth", "cut.pth", "other.pth"))
    torch.save(files.state_of(files.SMALL["3dconv-net"]()), good)
    cut.write_bytes(good.read_bytes()[:5000])
    torch.save({"model.diffusion_model.out.0.weight": torch.ones(3)}, other)
    for file, options, message in (
        (cut, ("--corpus", "mg15"), "cannot be loaded as a file of tensors only"),
        (other, ("--corpus", "mg15"), "it has no Hyper-iNGP, 3DConv-net or Triplane-Transformer"),
        (tmp_path / "none.pth", ("--corpus", "mg15"), "cannot read"),
        (good, (), "the following arguments are required: --corpus"),
        (good, ("--corpus", "mg15", "--text-encoder", str(tmp_path)), "text encoder"),
    ):
        done = run("amortized", "convert", "scaledreamer", str(file), str(tmp_path / "out"), *options)
        assert done.returncode == 2 and message in done.stderr, (file, done)
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert sorted(tmp_path.iterdir()) == [cut, good, other]


def test_the_old_name_still_works_and_says_the_new_one(run, tmp_path) -> None:
    old = run("amortized", "convert-mvdream", str(tmp_path / "none.pt"), "to", "--tokenizer", "x")
    note, error = old.stderr.splitlines()
    assert note == "`amortized convert-mvdream` is now `amortized convert mvdream`"
    new = run("amortized", "convert", "mvdream", str(tmp_path / "none.pt"), "to", "--tokenizer", "x")
    assert old.returncode == new.returncode == 2 and new.stderr.splitlines() == [error]
