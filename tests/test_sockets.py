"""Unix sockets that only this user may connect to."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from extproc.sockets import listening


def test_only_this_user_may_connect(tmp_path: Path) -> None:
    with closing(listening(tmp_path / "s")):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listening(path).close()  # which leaves the file
    assert path.exists()
    with closing(listening(path)) as made, closing(socket.socket(socket.AF_UNIX)) as caller:
        made.listen(1)
        caller.connect(str(path))


def test_a_path_that_is_too_long_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        listening(tmp_path / ("x" * 200))
