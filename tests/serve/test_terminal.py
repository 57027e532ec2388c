"""``posttrain chat`` as a process of its own: on a real terminal, and behind a pipe."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest

LONG = ("min_new_tokens=90000", "max_new_tokens=90000")


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """What a shell starts in the background ignores Ctrl-C, and so would the processes started here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def config(tmp_path, base, adapter):
    path = tmp_path / "chat.yaml"
    path.write_text(f"model_name_or_path: {base}\nadapter_name_or_path: {adapter}\n", encoding="utf-8")
    return path


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, command):
        import pty

        self.leader, self.follower = pty.openpty()
        name = os.ttyname(self.follower)
        # the first terminal that a new session opens is the one whose Ctrl-C reaches it
        shell = f'exec "$0" "$@" < {name} > {name} 2>&1'
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "TERM": "dumb", "COLUMNS": "80"}
        self.process = subprocess.Popen(["sh", "-c", shell, *command], start_new_session=True, env=environment)
        self.text = ""

    def write(self, text):
        time.sleep(0.3)  # a signal between the prompt and the reading of the line waits for the next key
        self.text = ""
        os.write(self.leader, text.encode())

    def wait_for(self, pattern, seconds=40):
        """Read until the pattern is there; returns what was read since the last ``write``."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, self.text[-2000:]
            if select.select([self.leader], [], [], 0.2)[0]:
                self.text += os.read(self.leader, 65536).decode(errors="replace")
        return self.text

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.leader)
        os.close(self.follower)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pseudo terminals of this kind")
def test_ctrl_c_stops_an_answer_and_not_the_chat(config, tmp_path):
    terminal = Terminal([sys.executable, "-m", "posttrain", "chat", str(config), *LONG])
    try:
        terminal.wait_for(r"stops an answer\r\n.*\r\n> $")
        terminal.write("\x03")
        terminal.wait_for(r"Ctrl-D or /exit leaves\)\s+> $")
        terminal.write("go\n")
        terminal.wait_for(r"go\s+[^>]{20,}")
        terminal.write("\x03")
        terminal.wait_for(r"\n> $")
        terminal.write("/set min_new_tokens 0\n/set max_new_tokens 4\n/compare sft base\n")
        assert "loading" in terminal.wait_for(r"sft and base answer from now on\.\s+> $")
        terminal.write("你好\n")
        assert re.search(r"\[sft\] {30,}\| \[base\]", terminal.wait_for(r"\[base\](.*\n)+> $"))
        path = tmp_path / "talk.jsonl"
        terminal.write(f"/save {path}\n")
        terminal.wait_for(r"wrote .*\s+> $")
        terminal.write("\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.close()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["model"] for row in rows] == ["sft", "base"]
    for row in rows:
        assert [message["content"] for message in row["messages"][::2]] == ["go", "你好"]
    assert len(rows[0]["messages"][1]["content"]) < 90000


def piped(config, content, *overrides):
    command = [
        sys.executable,
        "-m",
        "posttrain",
        "chat",
        str(config),
        "do_sample=false",
        "max_new_tokens=3",
        *overrides,
    ]
    return subprocess.run(command, input=content, capture_output=True, timeout=120)


def test_a_pipe_ends_with_the_status_of_its_lines(config):
    done = piped(config, "一\n/model base\n二\n".encode())
    assert (done.returncode, len(done.stdout.decode().rstrip("\n").split("\n"))) == (0, 2)
    refused = piped(config, "一\n/nodel base\n".encode())
    assert refused.returncode == 2
    assert "standard input, line 2: there is no command /nodel; did you mean /model?" in refused.stderr.decode()
    assert "Traceback" not in refused.stderr.decode()
