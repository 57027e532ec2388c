import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from posttrain.pipeline import processes
from posttrain.pipeline.processes import run_process

posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def python(code, *arguments):
    return [sys.executable, "-c", textwrap.dedent(code), *arguments]


def test_the_exit_status_is_passed_on():
    assert run_process(python("raise SystemExit(0)")).status == 0
    assert run_process(python("raise SystemExit(3)")).status == 3


MEASURE = """
import sys
from posttrain.pipeline.processes import run_process
for code in sys.argv[1:]:
    ended = run_process([sys.executable, "-c", code])
    print(ended.seconds, ended.peak_memory_bytes)
"""


def test_time_and_memory_are_those_of_the_child():
    # from a small process: a child counts, up to its own start, what the process that started it held
    codes = ["import time; x = bytearray(300_000_000); time.sleep(0.5)", "pass"]
    out = subprocess.run(python(MEASURE, *codes), capture_output=True, text=True, encoding="utf-8", check=True).stdout
    (slow, hungry), (quick, modest) = ([float(number) for number in line.split()] for line in out.splitlines())
    assert slow > 0.5 > quick
    assert 300_000_000 < hungry < 400_000_000
    assert 1_000_000 < modest < 100_000_000


@posix
def test_the_signal_that_ended_it_is_negative():
    assert run_process(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")).status == -9


CHILD = """
import signal, sys, time
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
print("ready", flush=True)
while len(seen) < int(sys.argv[1]):
    time.sleep(0.01)
time.sleep(0.3)
print("checkpoint", len(seen), flush=True)
raise SystemExit(130)
"""
PARENT = """
import sys
from posttrain.pipeline.processes import run_process
ended = run_process([sys.executable, "-c", sys.argv[1], sys.argv[2]])
print("ended", ended.status, ended.interrupted)
"""


@posix
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("to_group", [False, True])
def test_ctrl_c_reaches_the_child_once_each_time_and_is_waited_for(times, to_group):
    # a terminal signals the whole group, kill one process
    parent = subprocess.Popen(
        python(PARENT, CHILD, str(times)), stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    )
    assert parent.stdout.readline() == "ready\n"
    for _ in range(times):
        (os.killpg if to_group else os.kill)(parent.pid, signal.SIGINT)
        time.sleep(0.1)
    out, _ = parent.communicate(timeout=20)
    assert out.splitlines() == [f"checkpoint {times}", "ended 130 True"]


@posix
def test_a_signal_after_the_child_has_ended_does_not_take_its_end_away():
    """Ctrl-C between the child's end and its being waited for."""
    child = subprocess.Popen(python("raise SystemExit(3)"))
    with processes._passing_on(child) as seen:
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        status, _ = processes._waited(child)
    assert (status, seen) == (3, [signal.SIGINT])


ASKS_TO_TERMINATE = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: exit(7))
time.sleep(0.3)  # until the parent passes signals on
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(20)
"""
TERMINATED = """
import sys
from posttrain.pipeline.processes import run_process
ended = run_process([sys.executable, "-c", sys.argv[1]])
print(ended.status, ended.interrupted)
"""


@posix
def test_a_request_to_terminate_is_passed_on_and_waited_for():
    command = python(TERMINATED, ASKS_TO_TERMINATE)
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=30, check=True)
    assert done.stdout == "7 True\n"


def test_signals_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGINT)
    run_process(python("pass"))
    assert signal.getsignal(signal.SIGINT) is before
