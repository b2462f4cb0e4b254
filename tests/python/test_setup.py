"""What scripts/setup makes outlives a clone, and says so where it has been moved."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
ENVIRONMENT = Path(sys.prefix).resolve()


@pytest.mark.skipif(
    not (ENVIRONMENT / ".hps" / "requirements").is_file(),
    reason="not an environment of scripts/setup",
)
def test_programs_of_the_environment_outlive_the_clone_that_installed_them():
    programs = []
    for path in (ENVIRONMENT / "bin").iterdir():
        with path.open("rb") as file:
            first = file.readline(4096)
        if first.startswith(b"#!") and b"python" in first:
            programs.append(path.name)
            interpreter = Path(first[2:].split()[0].decode())
            assert interpreter.parent == ENVIRONMENT / "bin", f"{path} runs {interpreter}"
    assert "cmake" in programs


def test_an_environment_that_was_moved_is_refused_before_anything_is_installed(tmp_path: Path):
    shutil.copytree(SCRIPTS, tmp_path / "clone" / "scripts")
    stamps = tmp_path / "clone" / ".venv" / ".hps"
    stamps.mkdir(parents=True)
    (stamps / "place").write_text("/elsewhere/.venv\n")

    done = subprocess.run(
        [tmp_path / "clone" / "scripts" / "setup"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1, done.stdout
    assert "was made at\n  /elsewhere/.venv\n" in done.stderr
    assert f"rm -rf {stamps.parent}" in done.stderr
    assert sorted(path.name for path in stamps.iterdir()) == ["place"]
