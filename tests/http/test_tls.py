"""A whole stack behind a certificate: gRPC and HTTP speak TLS alike, every client of the package can, and nobody speaks plainly."""

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
import trustme

from quire import LLM, SamplingParams
from quire.errors import ConfigError, Unavailable
from quire.rpc.tls import own_tls, server_credentials
from quire.v1 import generation_pb2, generation_pb2_grpc
from tests.ship.served import QUIRE, Served, running_stack

_KEY = "a-secret-key"
_NAME = "quire.example"
_GREEDY = ("--temperature", "0", "--max-tokens", "12")


@dataclass(frozen=True)
class _Certificate:
    chain: Path
    key: Path
    authority: Path
    """The chain ends at it and does not hold it."""


def _issued(folder: Path, name: str) -> _Certificate:
    authority = trustme.CA()
    issued = authority.issue_cert(name)
    files = _Certificate(folder / "chain.pem", folder / "key.pem", folder / "authority.pem")
    files.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(files.authority)
    return files


def _self_signed(folder: Path) -> _Certificate:
    """As people make one: no authority, one common name and no other, key and certificate in one file."""
    file = folder / "self.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={_NAME}"]
    subprocess.run([*command, "-keyout", file, "-out", file], check=True, capture_output=True)
    return _Certificate(file, file, file)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> _Certificate:
    return _issued(tmp_path_factory.mktemp("tls"), _NAME)


@pytest.fixture(scope="module")
def served(certificate: _Certificate) -> Iterator[Served]:
    flags = ("--ssl-certfile", str(certificate.chain), "--ssl-keyfile", str(certificate.key))
    with running_stack("--max-num-seqs", "8", "--api-key", _KEY, *flags) as running:
        yield running


@pytest.fixture(scope="module")
def trust(certificate: _Certificate) -> tuple[str, ...]:
    return ("--ssl-ca-certs", str(certificate.authority), "--ssl-server-name", _NAME)


def _quire(*words: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*QUIRE, *words], input=said, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_commands_speak_tls_over_grpc(served: Served, trust: tuple[str, ...]) -> None:
    to = ("--address", served.address, "--api-key", _KEY, *trust)
    generated = _quire("generate", "ROMEO:", *_GREEDY, *to)
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.strip()
    assert _quire("chat", *_GREEDY, *to, said="Speak.\n").stdout.strip()
    assert _quire("health", served.address, *trust).returncode == 0
    size = ("--num-prompts", "3", "--random-input-len", "4", "--random-output-len", "4")
    measured = _quire("bench", "serve", *size, *to)
    assert measured.returncode == 0, measured.stderr


def test_the_commands_speak_tls_over_http(served: Served, trust: tuple[str, ...]) -> None:
    assert served.url.startswith("https://")
    to = ("--address", served.url, "--api-key", _KEY, *trust)
    assert _quire("chat", *_GREEDY, *to, said="Speak.\n").stdout.strip()
    size = ("--num-prompts", "3", "--random-input-len", "4", "--random-output-len", "4")
    measured = _quire("bench", "serve", *size, *to)
    assert measured.returncode == 0, measured.stderr


def test_a_server_that_nobody_vouches_for_is_not_spoken_to(served: Served, certificate: _Certificate) -> None:
    to = ("--address", served.address, "--api-key", _KEY)
    for trust in (
        (),
        ("--tls",),
        ("--ssl-ca-certs", str(certificate.authority)),
        ("--ssl-server-name", _NAME),
    ):
        refused = _quire("generate", "ROMEO:", *to, *trust)
        assert refused.returncode == 1
        assert "quire generate: " in refused.stderr
        assert refused.stdout == ""


def test_nothing_is_answered_in_clear(served: Served) -> None:
    with grpc.insecure_channel(served.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ListModels(generation_pb2.ListModelsRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(httpx.HTTPError):
        httpx.get(served.url.replace("https", "http") + "/health")
    host, _, port = served.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        answer = plain.recv(1)
    # An alert of TLS, or the end of the connection, and no frame of HTTP/2.
    assert answer in (b"", b"\x15")


def test_a_program_attaches_over_tls(served: Served, certificate: _Certificate) -> None:
    trust = {"ssl_ca_certs": str(certificate.authority), "ssl_server_name": _NAME}
    params = SamplingParams(max_tokens=5, temperature=0)
    with LLM(address=served.address, api_key=_KEY, tls=True, **trust) as llm:
        (output,) = llm.generate("ROMEO:", params, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 5
    with LLM(address=served.address, api_key=_KEY, tls=True) as stranger, pytest.raises(Unavailable):
        stranger.generate("ROMEO:", params, use_tqdm=False)


def test_a_stack_of_a_programs_own_may_speak_tls(tmp_path: Path) -> None:
    cert = _self_signed(tmp_path)
    with LLM(max_num_seqs=4, ssl_certfile=str(cert.chain), http=True) as llm:
        (output,) = llm.generate("ROMEO:", SamplingParams(max_tokens=3), use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 3
        trust = ("--ssl-ca-certs", str(cert.chain), "--ssl-server-name", _NAME)
        assert _quire("health", llm.address, *trust).returncode == 0
        assert _quire("health", llm.address).returncode == 1


@pytest.mark.parametrize("name", ["*.quire.example", "10.1.2.3"])
def test_whoever_has_the_certificate_finds_a_name_in_it(tmp_path: Path, name: str) -> None:
    files = _issued(tmp_path, name)
    tls = own_tls(str(files.chain), str(files.key))
    assert tls.ca_certs == str(files.chain)
    assert tls.server_name == name.replace("*", "any")


def test_what_is_no_certificate_is_named(tmp_path: Path) -> None:
    files = _issued(tmp_path, _NAME)
    (tmp_path / "other").mkdir()
    other = _self_signed(tmp_path / "other")
    for chain, key in ((files.key, files.key), (files.chain, other.key), (tmp_path / "none.pem", None)):
        with pytest.raises(ConfigError) as refused:
            server_credentials(str(chain), str(key) if key else None)
        assert refused.value.field == "ssl_certfile"
    started = _quire("serve", "--grpc-port", "0", "--no-http", "--ssl-certfile", str(files.authority))
    assert started.returncode == 1
    assert "--ssl-certfile=" in started.stderr
