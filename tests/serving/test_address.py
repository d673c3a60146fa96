"""Where a server and the playground listen, which is asked before they load a model."""

import socket
import sys
import types

import pytest

from safe_framework.cli import main
from safe_framework.errors import SafeError
from safe_framework.serving.address import check_address


@pytest.mark.parametrize("command", ["play", "serve"])
def test_a_taken_port_is_refused_before_a_model_is_loaded(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: the error names the port and the option, and comes before the adapter is looked at."""
    for name in ("gradio", "uvicorn"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([command, "no/adapter", "--host", "127.0.0.1", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"port {port} of `127.0.0.1` is in use\nhint: name another with --port")


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("127.0.0.1", 70_000, "there is no port 70000"),
        ("127.0.0.1", -1, "there is no port -1"),
        ("192.0.2.1", 0, "`192.0.2.1` cannot be listened on"),
        ("a" * 80, 0, "cannot be listened on"),
        ("..", 0, "cannot be listened on"),
    ],
)
def test_what_is_no_address_is_refused(host: str, port: int, said: str) -> None:
    """Law: a port out of range and a host that is not this machine are refused by name."""
    with pytest.raises(SafeError, match=said):
        check_address(host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_an_address_is_free_after_it_was_asked(host: str) -> None:
    """Law: asking takes nothing; the address can be listened on at once."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    check_address(host, port)
    check_address(host, port)
