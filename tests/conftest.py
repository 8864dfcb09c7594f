"""Fixtures that several tests share. Nothing here needs the network or trained weights."""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest

import jdmctl  # noqa: F401  before diffusers and transformers: it mends torchvision


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> Path:
    """A world of random weights, as `jdmctl world build` would lay it out; see tests/tiny_sd.py."""
    from tiny_sd import write_world

    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folders(tiny_world) -> tuple[Path, Path]:
    """Teacher and one-step student of that world: two ordinary StableDiffusionPipeline folders."""
    return tiny_world / "teacher", tiny_world / "student"


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    """teacher/ and student/ of the family that a module's own fixture `tiny` is; see tests/tiny_pipelines.py."""
    path = tmp_path_factory.mktemp(tiny.family)
    tiny.write(path)
    return path


@pytest.fixture
def family(tiny, folder):
    """That family's teacher and student, loaded."""
    from jdmctl.families.names import family_class

    return family_class(tiny.family).load(folder / "teacher", folder / "student", **tiny.student)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """An imagefolder of a dozen captioned 64 px pictures of coloured boxes."""
    from tiny_sd import write_photos

    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, number=12)
    return folder


@pytest.fixture
def in_tiny_world(tiny_world, tmp_path, monkeypatch) -> Path:
    """`tiny` in recipes and commands means the random world; run folders and caches go to a folder of their own."""
    monkeypatch.setenv("JDMCTL_WORLD", str(tiny_world))
    monkeypatch.setenv("JDMCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """A random CLIP."""
    from tiny_sd import write_clip

    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder / "model"


@pytest.fixture
def jdmctl_command(monkeypatch, capsys):
    """Runs a command in this process; returns exit code, stdout and stderr."""
    from jdmctl.cli import app

    def run(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jdmctl", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            app.main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def fresh_precision():
    """Accelerate keeps the first precision for a process's life; each test is to be as in a new process."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()
