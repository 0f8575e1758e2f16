"""Progress: a bar for a person, plain lines with the time left for a log."""

import io

from pipeline import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_plain_lines_with_the_time_left(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    assert list(progress.track(range(3), "work")) == [0, 1, 2]
    assert "work: 3/3" in log.getvalue() and "left" in log.getvalue()
    assert "\x1b" not in log.getvalue()


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    for item in progress.track(range(2), "work"):
        progress.say(f"line [{item}] is not markup")
    with progress.share_bar("train") as show:
        show(0.5)
        progress.say("half")
        show(1.0)
    text = terminal.getvalue()
    assert "line [0] is not markup" in text and "2/2" in text
    assert "half" in text and "100%" in text


def test_a_bar_is_gone_after_an_error(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    try:
        with progress.share_bar("train"):
            raise ValueError
    except ValueError:
        pass
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    progress.say("after")
    assert log.getvalue() == "after\n"


def test_durations_are_readable():
    assert [progress.duration(s) for s in (42, 185, 7800)] == ["42 s", "3 min 05 s", "2 h 10 min"]
