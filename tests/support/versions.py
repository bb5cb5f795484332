"""Versions of a model that multiplies, in a repository, and requests about them."""

from pathlib import Path
from typing import Any

import requests

from tests.support.server import ServerProcess

TIMES = """
import flambeau


class Times(flambeau.PythonModel):
    def load(self):
        {load}

    def predict(self, batch):
        return [item * ({factor}) for item in batch]
"""
HOW = 'source = "times.py:Times"\n'


def code(factor: object, load: str = "pass") -> str:
    return TIMES.format(factor=factor, load=load)


def put(repository: Path, version: str, factor: object, *, model: str = "times", load: str = "pass") -> None:
    """A version whose answers are the input times `factor`, which may be any expression of `item`."""
    folder = repository / model / version
    folder.mkdir(parents=True)
    (folder / "times.py").write_text(code(factor, load))
    (folder / "model.toml").write_text(HOW)


def ask(server: ServerProcess, path: str = "/predict", number: int = 1) -> Any:
    response = server.post(path, json={"input": number})
    return response.json()["output"] if response.status_code == 200 else (response.status_code, response.json()["code"])


def states(server: ServerProcess, model: str = "times") -> dict[str, str]:
    return {each["version"]: each["state"] for each in server.get(f"/models/{model}").json()["versions"]}


def change(server: ServerProcess, path: str, **body: Any) -> requests.Response:
    method = "PUT" if body else "POST"
    return requests.request(method, server.url + path, json=body or None, timeout=60)
