"""The truth log keeps what it was told, in order, within its bounds."""

import hashlib
import json

from extproc.simulator.log import Record, RequestLog


def _open(log: RequestLog, body: bytes = b"") -> Record:
    headers = {"authorization": "Bearer x", "x-request-id": "r1"}
    return log.open(time=5.0, method="POST", path="/v1/x", headers=headers, body=body)


def test_a_record_says_what_was_asked() -> None:
    """Nothing is masked: tests check what reached the provider."""
    log = RequestLog()
    _open(log, b"abc")
    (line,) = map(json.loads, log.lines().splitlines())
    assert line["headers"]["authorization"] == "Bearer x"
    assert (line["seq"], line["time"], line["request_id"]) == (1, 5.0, "r1")
    assert line["body_sha256"] == hashlib.sha256(b"abc").hexdigest()
    assert line["body_bytes"] == 3
    assert (line["finished"], line["broke"], line["usage_sent"]) == (False, None, None)


def test_after_and_clear() -> None:
    """Readers follow the log by number, and numbers are never used twice."""
    log = RequestLog()
    for _ in range(3):
        _open(log)
    assert [json.loads(line)["seq"] for line in log.lines(after=1).splitlines()] == [2, 3]
    log.clear()
    assert log.lines() == b""
    assert _open(log).seq == 4


def test_the_oldest_go_and_are_counted() -> None:
    """A log that ran over says how much it forgot."""
    log = RequestLog(limit=10, drop=4)
    for _ in range(11):
        _open(log)
    assert [record.seq for record in log.records] == list(range(5, 12))
    assert log.dropped == 4
