"""In which turn, and in which of the run's processes, tests run.

The tests of a file run in one process, because they share servers, and so do those of some folders; the examples of
each document run on their own. What takes longest begins first: else one process ends with it while the others have
nothing left to do.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling, Scheduling

from tests.support import quick, second

APART = ("test_docs.py::test_examples_do_what_the_document_says",)
"""Tests whose cases share no server and take long: each case goes to the process that is free."""

TOGETHER = ("tests/browser/", "tests/http/access/")
"""Folders whose files share what is dear: a browser and a service with a model of every kind; a server with tokens."""

SECONDS = {
    "tests/browser/": 80, "test_cli.py": 15, "test_activation_builds.py": 30, "test_sources.py": 50,
    "test_processes.py": 25, "test_corpus.py": 30, "test_any_file.py": 20, "test_log_loss.py": 40,
    "test_detection.py": 40, "test_instances.py": 15, "test_instance_networks.py": 15,
    "test_segmentation_builds.py": 40, "test_picture_builds.py": 15, "test_openapi.py": 12,
    "test_examples_do_what_the_document_says": 20, "test_server.py": 15,
    "test_hostile_graphs.py": 20, "test_tasks.py": 40, "test_fronts.py": 12,
    "test_predict.py": 30, "test_interrupt.py": 30, "test_odd_graphs.py": 25,
    "test_samples.py": 30, "test_shared_weights.py": 30, "test_near_models.py": 20,
    "test_without_torch.py": 20, "test_hostile_files.py": 20, "test_engines.py": 20, "test_standstill.py": 20,
    "test_wsgi.py": 20, "test_platforms.py": 30, "test_package.py": 30, "test_torchserve.py": 30,
    "test_task_samples.py": 20,
}  # fmt: skip
"""How long the longest take, about, by file or by case. Those that need the default model come later: one builds it
first, and the others would wait for it."""


class Turns(LoadFileScheduling):
    """Files to processes in the order in which they were collected; what is apart case by case."""

    def _split_scope(self, nodeid: str) -> str:
        folder = next((each for each in TOGETHER if nodeid.startswith(each)), None)
        return nodeid if any(each in nodeid for each in APART) else folder or super()._split_scope(nodeid)


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """Ours, where files are to stay together."""
    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # by the number of tests, which says little
    return Turns(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest first."""
    second.mark(items)
    if "quick" in config.option.markexpr:
        quick.mark(items)  # which reads the code of all tests: a second
    items.sort(key=lambda item: -_seconds(item.nodeid))


def _seconds(nodeid: str) -> int:
    return next((seconds for name, seconds in SECONDS.items() if name in nodeid), 0)  # a document before all of them
