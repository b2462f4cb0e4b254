"""What scripts/setup makes outlives a clone, and says so where it has been moved."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
ENVIRONMENT = Path(sys.prefix).resolve()


def interpreter_of(program: Path) -> Path | None:
    """That of a program that pip installed; None for others."""
    if not program.is_file():
        return None
    with program.open("rb") as file:
        first = file.readline(4096)
    path = first.removeprefix(b"#!").strip().decode(errors="replace")
    is_named = first.startswith(b"#!/") and Path(path).name.startswith("python")
    return Path(path) if is_named else None


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with a space that has the scripts, and nothing else."""
    folder = tmp_path / "a clone"
    shutil.copytree(SCRIPTS, folder / "scripts")
    return folder


def run_setup(clone: Path) -> subprocess.CompletedProcess[str]:
    """Where it goes on instead of refusing, it ends for want of cargo."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(clone), "CARGO_HOME": str(clone)}
    return subprocess.run(
        [clone / "scripts" / "setup"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )


def make_environment(folder: Path, made_at: Path) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "cmake").write_text(f"#!{made_at}/bin/python\nimport cmake\n")


@pytest.mark.skipif(
    not (ENVIRONMENT / ".hps" / "requirements").is_file(),
    reason="not an environment of scripts/setup",
)
def test_programs_of_this_environment_outlive_the_clone_that_installed_them():
    named = {path: interpreter_of(path) for path in (ENVIRONMENT / "bin").iterdir()}
    elsewhere = {
        path.name: interpreter
        for path, interpreter in named.items()
        if interpreter is not None and interpreter.parent != ENVIRONMENT / "bin"
    }
    assert not elsewhere


def test_programs_are_installed_by_the_path_of_the_environment_itself(clone: Path, tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (clone / ".venv").symlink_to(shared)
    script = f'source "{clone}/scripts/lib/common.sh"; printf %s "$PYTHON"'

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == str(shared.resolve() / "bin" / "python")


def test_an_environment_that_was_moved_is_refused_before_anything_is_installed(clone: Path):
    make_environment(clone / ".venv", made_at=Path("/elsewhere/.venv"))

    done = run_setup(clone)

    assert done.returncode == 1, done.stdout
    assert "/elsewhere/.venv/bin/python" in done.stderr
    # To be pasted: the space is the path's.
    assert done.stderr.rstrip().endswith("rm -r " + str(clone / ".venv").replace(" ", "\\ "))


def test_of_an_environment_behind_a_link_only_the_link_is_to_be_removed(
    clone: Path, tmp_path: Path
):
    make_environment(tmp_path / "shared", made_at=Path("/elsewhere/.venv"))
    (clone / ".venv").symlink_to(tmp_path / "shared")

    done = run_setup(clone)

    assert done.returncode == 1, done.stdout
    assert done.stderr.rstrip().endswith("rm " + str(clone / ".venv").replace(" ", "\\ "))


def test_an_environment_may_be_reached_by_another_path_than_it_was_made_at(
    clone: Path, tmp_path: Path
):
    make_environment(clone / ".venv", made_at=tmp_path / "link" / ".venv")
    (tmp_path / "link").symlink_to(clone)

    done = run_setup(clone)

    assert "moved" not in done.stderr
    assert "cargo" in done.stderr, "it went on"
