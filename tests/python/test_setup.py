"""What scripts/setup makes outlives a clone, and says so where it has been moved."""

import re
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
    start = program.read_bytes()[:4096].decode(errors="replace")
    # Where the path is long or has a space, a shell's line leads to it.
    named = re.match(r"""#!(/.*/python\S*)\n|#!/bin/sh\n'''exec' "?(/[^"]*/python[^" ]*)""", start)
    return Path(named[1] or named[2]) if named else None


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with a space that has the scripts, and nothing else."""
    folder = tmp_path / "a clone"
    shutil.copytree(SCRIPTS, folder / "scripts")
    return folder


def run_setup(clone: Path) -> subprocess.CompletedProcess[str]:
    """Where it goes on instead of refusing, it ends for want of a cargo that works."""
    cargo = clone / "bin" / "cargo"
    cargo.parent.mkdir()
    cargo.write_text("#!/bin/sh\nexit 1\n")
    cargo.chmod(0o755)
    environment = {"PATH": f"{cargo.parent}:/usr/bin:/bin", "HOME": str(clone)}
    return subprocess.run(
        [clone / "scripts" / "setup"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )


def make_environment(folder: Path, made_at: Path) -> None:
    first = f"#!{made_at}/bin/python"
    if " " in first:
        first = f"#!/bin/sh\n'''exec' \"{made_at}/bin/python\" \"$0\" \"$@\"\n' '''"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "cmake").write_text(f"{first}\nimport cmake\n")


@pytest.mark.skipif(
    not (ENVIRONMENT / ".hps" / "requirements").is_file(),
    reason="not an environment of scripts/setup",
)
def test_programs_of_this_environment_outlive_the_clone_that_installed_them():
    named = {path: interpreter_of(path) for path in (ENVIRONMENT / "bin").iterdir()}
    elsewhere = {
        path.name: interpreter
        for path, interpreter in named.items()
        if interpreter is not None and interpreter.parent.resolve() != ENVIRONMENT / "bin"
    }
    assert not elsewhere
    assert named[ENVIRONMENT / "bin" / "cmake"] is not None


def test_programs_are_installed_by_the_path_of_the_environment_itself(clone: Path, tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (clone / ".venv").symlink_to(shared)
    script = f'source "{clone}/scripts/lib/common.sh"; printf %s "$PYTHON"'

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == str(shared.resolve() / "bin" / "python")


@pytest.mark.parametrize("made_at", ["/elsewhere/.venv", "/else where/.venv"])
def test_an_environment_that_was_moved_is_refused_before_anything_is_installed(
    clone: Path, made_at: str
):
    make_environment(clone / ".venv", made_at=Path(made_at))

    done = run_setup(clone)

    assert done.returncode == 1, done.stdout
    assert f"\n  {made_at}/bin/python\n" in done.stderr
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


@pytest.mark.parametrize("name", ["link", "a link"])
def test_an_environment_may_be_reached_by_another_path_than_it_was_made_at(
    clone: Path, tmp_path: Path, name: str
):
    make_environment(clone / ".venv", made_at=tmp_path / name / ".venv")
    (tmp_path / name).symlink_to(clone)

    done = run_setup(clone)

    assert "moved" not in done.stderr
    assert "cargo" in done.stderr, "it went on"
