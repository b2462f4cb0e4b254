"""The README's first example does what it says, as it stands there."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_example_of_the_readme_runs(tmp_path: Path, run_python, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    example = next(block for block in blocks if "save_table" in block)
    monkeypatch.chdir(tmp_path)
    done = run_python(example + "\nprint(layer(keys).shape)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 2, 32])"


def test_the_configuration_of_the_readme_is_accepted(make_store, run_python):
    """Its keys, values and comments; its tables lie elsewhere."""
    text = re.search(r"```json\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert text is not None
    store = make_store(tiers="host")
    path = store.folder / "readme.json"
    path.write_text(text[1])
    done = run_python(
        "import sys, hps_torch\n"
        "try:\n"
        "    hps_torch.open(sys.argv[1])\n"
        "except hps_torch.HpsError as error:\n"
        "    print(error)\n",
        str(path),
    )
    assert done.returncode == 0, done.stderr
    problems = [line for line in done.stdout.splitlines() if "readme.json" in line]
    assert problems, "the tables are not there"
    assert all("sparse_files" in line for line in problems), problems
    assert "warning" not in done.stderr, done.stderr
