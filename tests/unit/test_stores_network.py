"""Which URLs, proxies and certificates a connection accepts."""

import socket
import ssl
from pathlib import Path

import pytest

from optfs.errors import ConfigError, ServiceError, ServiceUnavailable
from tests.support.certificates import certificate
from tests.support.faulty_server import FaultyServer, answer
from tests.support.transports import BODY, Exchange, fetch, transport


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "http://10.0.0.1:9000",
        "ftp://127.0.0.1",
        "127.0.0.1:9000",
        "https://",
        "https://host:port",
        "https://user:hunter2@host:port",
        "https://user:hunter2@host",
        "https://host/path",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
    ],
)
def test_urls_that_are_no_safe_endpoints_are_refused(url: str) -> None:
    """Plain http only to this computer; nothing but a host and a port; no secret is repeated."""
    with pytest.raises(ConfigError) as caught:
        transport(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://localhost:1/", "http://[::1]:1", "https://example.com", "https://10.0.0.1:9"]
)
def test_safe_endpoints_are_accepted(url: str) -> None:
    """Loopback by any of its names, and https to anywhere."""
    transport(url).close()


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_bundle_of_the_environment_is_trusted(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies come over TLS as they do without; the connection is kept."""
    file = certificate(tmp_path)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(variable, str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with FaultyServer(Exchange(), tls=context) as server:
        to = transport(server.url)
        for _ in range(2):
            assert fetch(to)[0] == BODY
        assert server.connections == 1
        to.close()


def test_a_certificate_that_nobody_vouches_for_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent, and trying again isn't suggested."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    with FaultyServer(Exchange(), tls=context) as server:
        to = transport(server.url)
        with pytest.raises(ServiceError, match="AWS_CA_BUNDLE") as caught:
            fetch(to)
        assert not isinstance(caught.value, ServiceUnavailable)
        assert server.requests == []
        to.close()


def test_a_bundle_that_cant_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the store is made, not at the first request."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"none\.pem"):
        transport("https://example.com")


def test_a_proxy_of_the_environment_is_used_for_https(monkeypatch: pytest.MonkeyPatch) -> None:
    """By CONNECT, with its login; a proxy that refuses is told as such; NO_PROXY and loopback go past it."""

    def exchange(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(answer(b"", status="403 Forbidden"))
        return False

    with FaultyServer(exchange) as proxy:
        for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        to = transport("https://bucket.example.com")
        with pytest.raises(ServiceUnavailable, match="proxy") as caught:
            fetch(to)
        to.close()
        assert proxy.requests[0].startswith(b"CONNECT bucket.example.com:443 ")
        assert b"roxy-authorization: basic bwu6cebzcw==".lower() in proxy.requests[0].lower()
        assert "p@ss" not in caught.value.detail + str(caught.value)
        asked = len(proxy.requests)
        with FaultyServer(Exchange()) as server:
            past = transport(server.url)
            assert fetch(past)[0] == BODY
            past.close()
        assert len(proxy.requests) == asked


def test_a_proxy_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without repeating its URL, which may hold a password."""
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "socks5://me:secret@127.0.0.1:1")
    with pytest.raises(ConfigError) as caught:
        transport("https://example.com")
    assert "secret" not in str(caught.value)
