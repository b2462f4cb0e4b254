"""A process ends cleanly whatever is open or running."""

import pytest

from conftest import StoreMaker

START = """
import os, sys, threading, time, torch, hps_torch
path = sys.argv[1]
keys = torch.arange(1000)

def lookup():
    return hps_torch.lookup(keys, path, "model", 0, 8)

lookup()
"""

ENDINGS = {
    "at the end of the script": "",
    "by sys.exit": "sys.exit(0)",
    "by os._exit": "os._exit(0)",
    "after closing": "hps_torch.close(path)",
    "after closing all": "hps_torch.close_all()",
    "after closing all twice": "hps_torch.close_all(); hps_torch.close_all()",
    "with a model still referenced": "model = torch.jit.script("
    "hps_torch.LookupLayer(path, 'model', 0, 8)); model(keys); sys.keep = model",
    "with a thread that finishes its lookups": """
def work():
    for _ in range(200):
        lookup()
threading.Thread(target=work).start()
""",
    "with a lookup at exit": "import atexit; atexit.register(lookup)",
    "opened in a thread": """
hps_torch.close_all()
thread = threading.Thread(target=lookup)
thread.start()
thread.join()
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_process_ends_cleanly(make_store: StoreMaker, run_python, ending: str):
    store = make_store(tiers="host and ssd")
    done = run_python(START + ENDINGS[ending], store.path)

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("attempt", range(2))
def test_a_daemon_thread_in_the_middle_of_lookups_does_not_spoil_the_exit(
    make_store: StoreMaker, run_python, attempt: int
):
    store = make_store(tiers="host and ssd")
    # Long lookups, so that exit comes in the middle of one: the thread must be ended by the
    # process, not by Python, which is another library's business.
    done = run_python(
        START
        + """
many = torch.arange(1000).repeat(2_000)
def work():
    hps_torch.lookup(many, path, "model", 0, 8)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
""",
        store.path,
    )

    assert done.returncode == 0, done.stderr


def test_the_next_process_finds_the_database_intact(make_store: StoreMaker, run_python):
    store = make_store(tiers="ssd")
    for _ in range(2):
        done = run_python(
            START + "print(lookup().view(torch.int32)[:, 0].sum().item(), flush=True)\nos._exit(0)",
            store.path,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "4950", "keys 0 to 99 are in the table"
