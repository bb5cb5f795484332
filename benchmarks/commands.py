"""The command that starts each server, and the files some want beside it. Knows nothing of measuring."""

import json
import sys
from pathlib import Path

from benchmarks.apps.order import Order
from benchmarks.environments import folder, python, run_archiver
from benchmarks.processes import free_port
from benchmarks.work import WORKS

TWO_FRONTS = ("--fronts", "2")
_APPS = Path(__file__).with_name("apps")


def flambeau(order: Order, _: Path) -> list[str]:
    """This checkout, with every setting at its default; with one engine for all, that engine."""
    engine = ["--engine", "onnxruntime"] if order.engine == "onnx" else []
    source = WORKS[order.work].source
    return [sys.executable, "-m", "flambeau", "serve", *source, "--port", str(order.port), *engine]


def two_fronts(order: Order, scratch: Path) -> list[str]:
    """The same with two fronts on the port."""
    return [*flambeau(order, scratch), *TWO_FRONTS]


def flask_run(order: Order, _: Path) -> list[str]:
    """The recipe's script under Flask's development server."""
    return [python("flask"), "-m", "flask", "--app", "benchmarks.apps.recipe", "run", "--port", str(order.port)]


def gunicorn_as_written(order: Order, _: Path) -> list[str]:
    """The recipe's script as tutorials deploy it."""
    return [python("flask"), "-m", "gunicorn", "-w", "2", *_gunicorn(order), "benchmarks.apps.recipe:app"]


def gunicorn_tuned(order: Order, _: Path) -> list[str]:
    """A synchronous worker for each core. Loaded before they fork: as fast, and a third of the memory is shared."""
    workers = ["-w", str(order.workers), "--preload"]
    return [python("flask"), "-m", "gunicorn", *workers, *_gunicorn(order), "benchmarks.apps.tuned:app"]


def _gunicorn(order: Order) -> list[str]:
    return ["-b", f"127.0.0.1:{order.port}", "--timeout", "120"]


def bentoml(order: Order, _: Path) -> list[str]:
    """Its own workers."""
    service = "benchmarks.apps.bento:Service"
    serve = ["serve", service, "--host", "127.0.0.1", "--port", str(order.port), "--timeout", "120"]
    return [python("bentoml"), "-m", "bentoml", *serve]


def torchserve(order: Order, scratch: Path) -> list[str]:
    """A model archive with its workers' numbers, and ports that do not meet others."""
    (scratch / "store").mkdir()
    (scratch / "model-config.yaml").write_text(
        f"minWorkers: {order.workers}\nmaxWorkers: {order.workers}\nresponseTimeout: 120\n"
        f"batchSize: {order.batch}\nmaxBatchDelay: {round(1000 * order.wait)}\n"
    )
    ports = {"inference": order.port, "management": free_port(), "metrics": free_port()}
    lines = [f"{name}_address=http://127.0.0.1:{port}" for name, port in ports.items()]
    lines += [f"grpc_inference_port={free_port()}", f"grpc_management_port={free_port()}"]
    lines += ["disable_token_authorization=true", "default_response_timeout=120", "disable_system_metrics=true"]
    (scratch / "config.properties").write_text("\n".join(lines))
    archive = [
        "--model-name", "m", "--version", "1.0", "--handler", str(_APPS / "torchserve_handler.py"),
        "--config-file", "model-config.yaml", "--export-path", "store",
    ]  # fmt: skip
    run_archiver(archive, folder=scratch)
    return [
        str(folder("torchserve") / "bin" / "torchserve"), "--start", "--foreground", "--ncs", "--disable-token-auth",
        "--model-store", "store", "--models", "m=m.mar", "--ts-config", "config.properties",
    ]  # fmt: skip


def mlserver(order: Order, scratch: Path) -> list[str]:
    """Two files of settings. With no workers the runtime is in the server's own process."""
    settings = {
        "debug": False, "host": "127.0.0.1", "http_port": order.port, "grpc_port": free_port(),
        "metrics_port": free_port(), "metrics_endpoint": None, "parallel_workers": order.workers,
    }  # fmt: skip
    model = {
        "name": "m", "implementation": "benchmarks.apps.mlserver_runtime.Runtime",
        "max_batch_size": order.batch, "max_batch_time": order.wait,
    }  # fmt: skip
    (scratch / "settings.json").write_text(json.dumps(settings))
    (scratch / "model-settings.json").write_text(json.dumps(model))
    return [str(folder("mlserver") / "bin" / "mlserver"), "start", str(scratch)]
