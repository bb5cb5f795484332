"""Every task over KServe v2: images go in as bytes, and its answers come out as the arrays that the metadata tells."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flambeau.protocols import v2_inference, v2_models
from flambeau.protocols.v2_values import InferenceRequest, NamedTensor
from flambeau.serving.service import BlockingService, Service
from flambeau.settings.service import Settings
from tests.support import task_models
from tests.support.photographs import encoded, photograph

TASKS = [
    (task_models.sigmoid_outside, {"scores", "present"}),
    (task_models.embedding, {"embedding"}),
    (task_models.regression, {"output"}),
    (task_models.softmax_inside, {"probabilities", "labels", "scores", "class_index", "recognised"}),
]


@pytest.mark.parametrize(("make", "names"), TASKS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_task_gives_the_arrays_that_its_metadata_tells(tmp_path: Path, make: Any, names: set[str]) -> None:
    made = make(tmp_path / "model")
    files = tuple(encoded(photograph(name)) for name in ("coffee", "chelsea"))
    service = BlockingService(lambda: Service([made.bundle], Settings(runner="threads", replicas=1)))
    request = InferenceRequest((NamedTensor("images", "BYTES", (2,), files),))
    try:
        found = service.call(lambda each: v2_inference.infer(each, each.get(), request)).outputs
        told = v2_models.metadata(service.service, service.service.get()).outputs
    finally:
        service.close()
    assert {each.name for each in found} == names
    declared = {each.name: each for each in told}
    for each in found:
        shape = declared[each.name].shape
        assert (each.datatype, len(each.shape), each.shape[0]) == (declared[each.name].datatype, len(shape), 2)
        assert all(size in (-1, found) for size, found in zip(shape, each.shape, strict=True))
    right = np.stack([made.answers(each).numpy() for each in files])
    [first] = [each for each in found if each.name in ("scores", "embedding", "output", "probabilities")][:1]
    activated = 1 / (1 + np.exp(-right)) if names == {"scores", "present"} else right
    np.testing.assert_allclose(np.asarray(first.data), activated, rtol=1e-3, atol=1e-4)
