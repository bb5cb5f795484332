"""Who is let in: tokens (T-10), their file, and addresses other than loopback (T-08)."""

import re
import socket
from pathlib import Path

import pytest

import flambeau
from flambeau.http import tokens
from tests.support.access import ADMIN, HASHED, INFER, WRONG, ask, bearer, predict
from tests.support.server import Serve, ServerProcess
from tests.support.warm import run_with_torch

# Tokens (T-10)


def test_a_prediction_needs_a_token_t10(server: ServerProcess) -> None:
    for token in (INFER, ADMIN, HASHED):
        assert server.post(**predict(token)).json() == {"output": 4.0}
    wrong: str | None
    for wrong in (None, WRONG, INFER[:-1], INFER + "x", ""):
        refused = server.post(**predict(wrong))
        assert (refused.status_code, refused.json()["code"]) in ((401, "unauthorized"), (429, "too_many_attempts"))
        if refused.status_code == 401:
            assert refused.headers["WWW-Authenticate"].startswith("Bearer")


def test_other_schemes_are_no_tokens_t10(server: ServerProcess) -> None:
    for value in (f"Basic {INFER}", INFER, f"Bearer{INFER}", f"Bearer {INFER} {INFER}", "Bearer", f"Bearer {ADMIN},"):
        status, _, _ = ask(server, "POST", "/predict", {"Authorization": value}, b"{}")
        assert status in (401, 429), value
    status, _, body = ask(
        server, "POST", "/predict", {"Authorization": f"bearer {INFER}", "Content-Type": "application/json"},
        b'{"input": 1}',
    )  # fmt: skip
    assert (status, body) == (200, b'{"output":2.0}')


def test_an_infer_token_is_not_an_admin_token_t10(server: ServerProcess) -> None:
    refused = server.get("/metrics", headers=bearer(INFER))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert server.get("/metrics", headers=bearer(ADMIN)).status_code == 200


def test_two_authorizations_are_not_one_t10(server: ServerProcess) -> None:
    """Whichever of the two another reader would take, only a token that is right by itself lets in."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(
            f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {WRONG}\r\n"
            f"Authorization: Bearer {INFER}\r\nConnection: close\r\n\r\n".encode()
        )
        assert sock.recv(65536).split()[1] in (b"401", b"403", b"429")


def test_guessing_is_slowed_down_and_harms_nobody_else_t10(serve: Serve, double_py: Path, tokens_file: Path) -> None:
    with serve(f"{double_py}:Double", "--allow-code", "--tokens-file", tokens_file) as started:
        bare = started.post(json={"input": 1}, headers={"Authorization": INFER})
        assert "send it as Authorization: Bearer TOKEN" in bare.json()["error"]  # and not that the token is unknown
        answers = [started.post(**predict(tokens.fresh())) for _ in range(11)]
        assert [each.status_code for each in answers] == [401] * 9 + [429] * 2
        assert answers[-1].json()["code"] == "too_many_attempts"
        assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
        assert started.post(**predict(INFER)).status_code == 200  # somebody else behind the same address
        assert (
            'flambeau_refusals_total{code="too_many_attempts"} 2.0'
            in started.get("/metrics", headers=bearer(ADMIN)).text
        )


def test_tokens_of_the_environment_stay_out_of_everything_t10(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAMBEAU_TOKEN", INFER)
    monkeypatch.setenv("FLAMBEAU_ADMIN_TOKEN", ADMIN)
    (tmp_path / "spy.py").write_text(
        "import os, flambeau\n"
        "class Spy(flambeau.PythonModel):\n"
        "    def predict(self, batch):\n"
        "        return [dict(os.environ) for _ in batch]\n"
    )
    with serve(f"{tmp_path / 'spy.py'}:Spy", "--allow-code", "--log-level", "debug") as started:
        environment = started.post(**predict(INFER)).text
        started.post(**predict(WRONG))
        metrics = started.get("/metrics", headers=bearer(ADMIN)).text
        arguments = "".join(
            file.read_bytes().decode(errors="replace")
            for file in Path("/proc").glob("[0-9]*/cmdline")
            if file.parent.exists()
        )
        everything = environment + metrics + started.log() + started.post(**predict(WRONG)).text + arguments
        assert "PATH" in environment
        for secret in (INFER, ADMIN, WRONG):
            assert secret not in everything


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (f"infer {'a' * 40}\n", 0o600, "too weak"),
        ("infer short\n", 0o600, "too weak"),
        (f"read {INFER}\n", 0o600, "line 1"),
        (f"\n{INFER}\n", 0o600, "line 2"),
        ("# nothing\n", 0o600, "holds no token"),
        (f"infer {INFER}\n", 0o640, "chmod 600"),
        (f"infer {INFER}\n", 0o604, "chmod 600"),
        (None, 0, "cannot be read"),
    ],
)
def test_a_bad_tokens_file_is_refused_with_the_remedy_t10(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, mode: int, says: str
) -> None:
    file = tmp_path / "tokens"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(flambeau.SetupError, match=says) as caught:
        flambeau.create_app(tokens_file=str(file))
    assert caught.value.exit_code == 78
    assert INFER not in str(caught.value)


def test_the_token_command_prints_what_is_taken_t10(tmp_path: Path) -> None:
    first, second = (run_with_torch("token").stdout.strip() for _ in range(2))
    assert first != second
    assert re.fullmatch(r"[\w-]{43}", first)
    assert re.fullmatch(r"admin [\w-]{43}\n", run_with_torch("token", "--scope", "admin").stdout)


# Binding (T-08)


def test_another_address_is_served_with_tokens_t08(serve: Serve, double_py: Path, tokens_file: Path) -> None:
    with serve(f"{double_py}:Double", "--allow-code", "--host", "0.0.0.0", "--tokens-file", tokens_file) as started:
        started.url = started.url.replace("0.0.0.0", "127.0.0.1")
        assert started.post(**predict(None)).status_code == 401
        assert started.post(**predict(INFER, Host="any.example")).status_code == 200  # nobody said which names


@pytest.mark.long
def test_a_tokens_file_that_changes_is_read_again(serve: Serve, double_py: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"

    def write(text: str) -> None:
        other = tmp_path / "other"
        other.write_text(text)
        other.chmod(0o600)
        other.rename(file)

    def works(token: str) -> bool:
        answer = running.post(json={"input": 4}, headers=bearer(token))
        assert answer.status_code in (200, 401, 429)
        return answer.status_code == 200

    write(f"infer {INFER}\n")
    with serve(f"{double_py}:Double", "--allow-code", "--replicas", "1", "--tokens-file", file) as running:
        assert works(INFER)
        write(f"infer {HASHED}\n")
        running.wait_until(lambda: works(HASHED), within=30)
        assert not works(INFER)
        write("infer short\n")  # a mistake locks nobody out, and lets nobody in
        running.wait_until(lambda: works(HASHED) and "the tokens stay as they were" in running.log(), within=30)
        file.unlink()
        running.wait_until(lambda: works(HASHED) and "cannot be read (No such file" in running.log(), within=10)
        write(f"infer {HASHED}\nadmin {ADMIN}\n")
        running.wait_until(lambda: works(ADMIN) and "tokens read again" in running.log(), within=30)
        assert running.get("/metrics", headers=bearer(HASHED)).status_code == 403
        assert running.get("/metrics", headers=bearer(ADMIN)).status_code == 200
