"""A process that cannot find the others says so."""

import socket
from collections.abc import Iterator

import pytest
import torch

from tokengym.agents.training.ranks import find_main_process


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket where the first process of two is expected by this one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name, value in {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": server.getsockname()[1]}.items():
            monkeypatch.setenv(name, str(value))
        yield server


def test_the_first_process_is_found(listening: socket.socket) -> None:
    find_main_process(0.0)


def test_without_the_first_process_the_error_has_its_address(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    listening.close()
    with pytest.raises(TimeoutError, match=rf"process 1 cannot reach the first process at 127\.0\.0\.1:{port} \("):
        find_main_process(0.0)


def test_a_port_that_is_none_is_named(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "http")
    with pytest.raises(ValueError, match="MASTER_PORT is 'http': give the number"):
        find_main_process(0.0)


@pytest.mark.parametrize("alone", ["first", "no launcher", "joined already"])
def test_nobody_is_looked_for(listening: socket.socket, alone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listening.close()
    if alone == "first":
        monkeypatch.setenv("RANK", "0")
    elif alone == "no launcher":
        monkeypatch.delenv("MASTER_ADDR")
    else:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    find_main_process(0.0)
