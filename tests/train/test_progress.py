import io

from posttrain.train.progress import Progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(stream):
    return stream.getvalue().splitlines()


def test_a_log_file_gets_a_readable_line_at_most_every_few_seconds():
    clock, stream = Clock(), io.StringIO()
    with Progress(100, "ppo", interval=10.0, stream=stream, clock=clock) as progress:
        for _ in range(100):
            clock.now += 1.0
            progress.update(loss=0.123456, reward=-0.5, kl=0.01, tokens_per_second=1234.5)
    shown = lines(stream)
    assert len(shown) == 11
    assert (
        shown[0] == "ppo 1/100 (1 %) · loss 0.1235, reward -0.5, KL 0.01, tokens/s 1,234 · 0:00:01 gone · 0:01:39 left"
    )
    assert shown[-1].startswith("ppo 100/100 (100 %)")
    assert "left" not in shown[-1]


def test_an_early_end_still_shows_the_last_state():
    clock, stream = Clock(), io.StringIO()
    with Progress(100, "sft", stream=stream, clock=clock) as progress:
        progress.update()
        progress.update(loss=0.25)
    assert lines(stream)[-1].startswith("sft 2/100 (2 %) · loss 0.25")


def test_the_time_left_of_a_resumed_run_counts_only_its_own_steps():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(100, "sft", initial=50, stream=stream, clock=clock)
    clock.now = 10.0
    progress.update(10)
    assert "60/100" in lines(stream)[0]
    assert "0:00:40 left" in lines(stream)[0]


def test_a_phase_is_shown_until_the_step_is_done():
    stream = io.StringIO()
    progress = Progress(4, "ppo", interval=0.0, stream=stream)
    progress.phase("generate", 12, 32)
    progress.phase("score")
    progress.update(loss=1.0)
    shown = lines(stream)
    assert "generate 12/32" in shown[0]
    assert "score" in shown[1]
    assert "score" not in shown[2]


def test_values_stay_and_none_is_left_out():
    stream = io.StringIO()
    progress = Progress(4, "ppo", interval=0.0, stream=stream)
    progress.update(loss=1.0, reward=None)
    progress.update(kl=0.5)
    assert "loss 1, KL 0.5" in lines(stream)[1]
    assert "reward" not in stream.getvalue()


def test_a_disabled_one_prints_notes_only():
    stream = io.StringIO()
    with Progress(4, "ppo", disable=True, interval=0.0, stream=stream) as progress:
        progress.phase("generate", 1, 2)
        progress.update(loss=1.0)
        progress.note("saved checkpoint-1")
    assert lines(stream) == ["saved checkpoint-1"]


def test_a_terminal_gets_one_bar():
    stream = Terminal()
    with Progress(4, "ppo", stream=stream) as progress:
        progress.phase("generate", 1, 2)
        progress.update(2, loss=1.0)
        progress.note("saved checkpoint-2")
        progress.update(2, loss=0.5)
    text = stream.getvalue()
    assert "100%" in text
    assert "4/4" in text
    assert "loss 0.5" in text
    assert "generate 1/2" in text
    assert "saved checkpoint-2\n" in text
