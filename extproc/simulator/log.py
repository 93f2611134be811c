"""The truth log: what was asked, what was handed to the socket, how it ended.

Knows the record of one request and how records are kept. Knows no dialect and no sockets.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

MAX_RECORDS = 200_000  # about 250 MB; a benchmark must not eat the machine it measures
DROP_RECORDS = MAX_RECORDS // 10  # so dropping is rare and cheap per record

Broke = Literal["abort", "stall", "client_closed", "status"]


class Record(msgspec.Struct, kw_only=True, gc=False):
    """One request, changed while it is served.

    Once over, either `finished` is true or `broke` says why not; `status` means the whole answer
    was an error. Tokens and chunks (SSE events, `[DONE]` included) count when the last byte of
    their event is handed to the socket.
    """

    seq: int
    time: float
    method: str
    path: str
    headers: Mapping[str, str]
    body_sha256: str
    body_bytes: int
    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    status: int | None = None
    usage_sent: dict[str, Any] | None = None
    prompt_tokens: int = 0
    output_tokens_sent: int = 0
    chunks_sent: int = 0
    finished: bool = False
    broke: Broke | None = None
    request_id: str | None = None
    answer_id: str | None = None
    sent_sha256: str | None = None
    sent_bytes: int = 0


class RequestLog:
    """Records in order of arrival, numbered from 1 without a gap; the oldest go at `limit`."""

    def __init__(self, limit: int = MAX_RECORDS, drop: int = DROP_RECORDS) -> None:
        self.records: list[Record] = []
        self.dropped = 0
        self._seq = 0
        self._limit = limit
        self._drop = drop

    def open(
        self, *, time: float, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Record:
        """Start the record of a request that just arrived."""
        self._seq += 1
        record = Record(
            seq=self._seq,
            time=time,
            method=method,
            path=path,
            headers=headers,
            body_sha256=hashlib.sha256(body).hexdigest(),
            body_bytes=len(body),
            request_id=headers.get("x-request-id"),
        )
        self.records.append(record)
        if len(self.records) > self._limit:
            del self.records[: self._drop]
            self.dropped += self._drop
        return record

    def clear(self) -> None:
        """Forget all records; numbering goes on."""
        self.records.clear()

    def lines(self, after: int = 0) -> bytes:
        """Return the records with `seq` above `after` as JSON lines."""
        return msgspec.json.Encoder().encode_lines([r for r in self.records if r.seq > after])
