"""Catalogue files over HTTP on loopback: a good file, a wrong hash, a cut connection, two processes at once."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latticework.core.errors import Failure, UserError
from latticework.data.mirror import locate

BODY = b"some bytes of a data set" * 4000
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if "cut" in self.path:
            self.wfile.write(BODY[:1000])
            self.wfile.flush()
            self.connection.close()
        elif "wrong" in self.path:
            self.wfile.write(BODY[::-1])
        else:
            if "slow" in self.path:
                import time

                time.sleep(1.0)
            self.wfile.write(BODY)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.delenv("LATTICEWORK_DATA", raising=False)
        monkeypatch.setenv("LATTICEWORK_MIRROR", f"http://127.0.0.1:{running.server_address[1]}")
        monkeypatch.setenv("LATTICEWORK_CACHE", str(tmp_path / "cache"))
        yield Handler.asked
        running.shutdown()


def left(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock")


def test_a_file_is_fetched_once(server: list[str], tmp_path: Path) -> None:
    assert locate("set", "good.npz", SHA).read_bytes() == BODY
    assert locate("set", "good.npz", SHA).read_bytes() == BODY
    assert server == ["/set/good.npz"] and left(tmp_path) == ["good.npz"]


def test_a_wrong_hash_is_refused_and_nothing_kept(server: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SHA-256 differs"):
        locate("set", "wrong.npz", SHA)
    assert left(tmp_path) == []


def test_a_cut_connection_is_a_failure_and_nothing_kept(server: list[str], tmp_path: Path) -> None:
    with pytest.raises((Failure, UserError), match="nothing was kept"):
        locate("set", "cut.npz", SHA)
    assert left(tmp_path) == []


def test_a_second_process_waits_for_the_first(server: list[str], tmp_path: Path) -> None:
    code = f"from latticework.data.mirror import locate; print(len(locate('set', 'slow.npz', '{SHA}').read_bytes()))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate(timeout=60)[0].strip() for p in both]
    assert said == [str(len(BODY))] * 2 and server == ["/set/slow.npz"]


def test_nobody_there_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LATTICEWORK_DATA", raising=False)
    monkeypatch.setenv("LATTICEWORK_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("LATTICEWORK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Failure, match="cannot fetch"):
        locate("set", "x.npz", SHA)


def test_without_a_place_it_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATTICEWORK_DATA", raising=False)
    monkeypatch.delenv("LATTICEWORK_MIRROR", raising=False)
    with pytest.raises(UserError, match="LATTICEWORK_DATA is not set; set LATTICEWORK_DATA"):
        locate("set", "x.npz", SHA)


def test_a_changed_file_in_the_folder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.npz").write_bytes(b"other")
    monkeypatch.setenv("LATTICEWORK_DATA", str(tmp_path))
    with pytest.raises(UserError, match="not the file of the catalogue"):
        locate("set", "x.npz", SHA)
