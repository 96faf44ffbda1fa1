import threading
import time

import pytest

from experiments import files, live_report
from experiments.live_report import LiveReport

LONG = 30.0


def content():
    return {
        "title": "sums",
        "settings": {"preset": "ci", "seed": 0, "config": {}},
        "environment": {"started": "today"},
        "rows": [],
        "pictures": [],
        "notes": [],
    }


def until(holds):
    end = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_page_is_there_while_the_run_goes_on_and_follows_its_metrics(tmp_path):
    page = tmp_path / "report.html"
    report = LiveReport(tmp_path, content)
    told = []
    with report.live(0.02, told.append):
        until(page.exists)
        assert "Running, as of 2" in page.read_text()
        assert '<meta http-equiv="refresh" content="1">' in page.read_text()
        assert "<h2>Training</h2>" not in page.read_text()
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 0.5}\n')
        until(lambda: "0.5 at step 2" in page.read_text())
        for step in range(3, 40):  # from two threads
            report.write(f"Written at {step}")
    report.write("Finished today")
    text = page.read_text()
    assert "Finished today. Preset ci" in text
    assert "http-equiv" not in text
    assert "0.5 at step 2" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "report.html"]
    assert told == []


def test_a_page_that_cannot_be_written_is_told_once_and_tried_again(tmp_path, monkeypatch):
    whole, tries, told = files.write_whole, [], []

    def failing(path, data):
        tries.append(path)
        if len(tries) <= 3:
            raise OSError(28, "No space left on device")
        whole(path, data)

    monkeypatch.setattr(files, "write_whole", failing)
    with LiveReport(tmp_path, content).live(0.01, told.append):
        until((tmp_path / "report.html").exists)
    assert told == [f"note: {tmp_path / 'report.html'} is not up to date: [Errno 28] No space left on device"]


def test_a_turn_that_is_late_does_not_hold_up_the_end_nor_overwrite_the_last_page(tmp_path, monkeypatch):
    monkeypatch.setattr(live_report, "_PATIENCE", 0.05)
    began, released = threading.Event(), threading.Event()
    threads = []

    def slow():
        if threading.current_thread() is not threading.main_thread():
            threads.append(threading.current_thread())
            began.set()
            assert released.wait(LONG)
        return content()

    report = LiveReport(tmp_path, slow)
    with report.live(0.01, print):
        assert began.wait(LONG)
    released.set()
    report.write("Finished today")
    threads[0].join(LONG)
    assert "Finished today" in (tmp_path / "report.html").read_text()


def test_the_thread_ends_with_a_block_that_fails(tmp_path):
    report = LiveReport(tmp_path, content)

    def fail():
        with report.live(LONG, print):
            raise ZeroDivisionError

    before = threading.active_count()
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert threading.active_count() == before
    assert time.monotonic() - began < LONG / 2
