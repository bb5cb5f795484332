"""W1 to W7 and U10: which task a network has, which activation its answer needs, and that its rows are independent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import activation_nets
from flambeau.builder import activation, probing
from flambeau.builder.filled import Filled
from flambeau.bundle.storage import Activation, ImageConfig, TensorConfig
from flambeau.errors import SourceError
from flambeau.types import TensorSpec

NETS = Path(activation_nets.__file__)
SIDE = 64


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Networks of toys are slower in several threads, and much slower where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(name: str) -> nn.Module:
    torch.manual_seed(11)
    network: nn.Module = getattr(activation_nets, name)().eval()
    return network


def studied(network: Any, *, output: str | None = None, **said: Any) -> tuple[activation.Decided, probing.Probed]:
    """What a build finds out about a network over images, before it exports it."""
    filled = Filled(
        network=network,
        name="Net",
        architecture=None,
        pipeline=ImageConfig(resize=SIDE, crop=SIDE),
        inputs=(TensorSpec("input", "float32", (3, SIDE, SIDE)),),
    )
    probed = probing.probe(filled, output, tell=lambda text: None)
    seen = activation.ProbedOutput(
        "Net", probed.numbers, probed.ending, without_head=probed.without_head, named=said.pop("named", False)
    )
    return activation.decide(seen, said.pop("task", None), said.pop("activation", None), **said), probed


SOFTMAX = Activation("softmax", by="network", known="graph")
SIGMOID = Activation("sigmoid", by="network", known="graph")
AS_IT_IS = Activation("none", by="network", known="graph")


@pytest.mark.parametrize(
    ("name", "task", "applied"),
    [
        ("Net", "classification", Activation("softmax", known="assumed")),
        ("OnePlaceHead", "classification", Activation("softmax", known="assumed")),
        ("WithoutActivation", "classification", Activation("softmax", known="assumed")),
        ("Softmax", "classification", SOFTMAX),
        ("SoftmaxLayer", "classification", SOFTMAX),
        ("HandmadeSoftmax", "classification", SOFTMAX),
        ("Undecided", "classification", SOFTMAX),
        ("TwoHeads", "classification", Activation("softmax", known="assumed")),
        ("LogSoftmax", "classification", Activation("softmax", by="network", logarithm=True, known="graph")),
        ("HandmadeLogSoftmax", "classification", Activation("softmax", by="network", logarithm=True, known="graph")),
        ("Sigmoid", "multi-label", SIGMOID),
        ("OneSigmoid", "multi-label", SIGMOID),
        ("SigmoidInPlace", "multi-label", SIGMOID),
        ("Normalised", "embedding", AS_IT_IS),
        ("WithoutHead", "embedding", AS_IT_IS),
    ],
)
def test_what_is_certain_is_found(name: str, task: str, applied: Activation) -> None:
    """W2, W3, W5: by the last operation that really ran, held against the numbers. Else a softmax, which is said."""
    decided, _ = studied(made(name))
    assert (decided.task, decided.activation) == (task, applied)
    assert task in decided.note
    if applied.known == "assumed":
        assert "Flambeau applies a softmax" in decided.note
        assert "--task multi-label" in decided.note


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("OneScore", "one output.*--task regression.*--task multi-label"),
        ("OneSqueezed", "one output.*--task regression.*--task multi-label"),
        ("Pooled", "ends in a pooling.*--task embedding.*--task classification"),
        ("ConvolutionalHead", "ends in a pooling.*--task embedding.*--task classification"),
        ("NormAfterLinear", "ends in a normalisation.*--task embedding"),
        ("Tanh", "ends in a tanh.*--task regression"),
        ("HardSigmoid", "ends in a hard sigmoid.*--task multi-label.*--activation none"),
        ("SoftmaxOverRows", "ends in a softmax.*do not sum to 1.*dim=1"),
        ("PartOfSoftmax", "ends in a softmax.*left out.*--task classification --activation none"),
        ("SigmoidOfAPart", "ends in numbers that were changed in part.*--task regression"),
        ("ScoresAndSigmoid", "ends in several kinds of numbers.*--task regression"),
    ],
)
def test_what_could_be_wrong_is_asked(name: str, says: str) -> None:
    """W1, W5: one output is never a softmax, and what may be features is never taken for classes."""
    with pytest.raises(SourceError, match=says):
        studied(made(name))


TASKS_WITH_CLASSES: list[dict[str, Any]] = [{"named": True}, {"task": "classification"}, {"task": "multi-label"}]


@pytest.mark.parametrize("said", TASKS_WITH_CLASSES, ids=["named", "classification", "multi-label"])
@pytest.mark.parametrize("name", ["ClippedSigmoid", "ClippedSoftmax", "MeanOfSigmoids", "HardSigmoid", "LogSigmoid"])
def test_classes_do_not_say_that_an_activation_is_missing(name: str, said: dict[str, Any]) -> None:
    """W2, W3: what may be probabilities already gets no second activation, whatever the classes are called."""
    with pytest.raises(SourceError, match="--task classification if" if "named" in said else "--activation none"):
        studied(made(name), **said)


@pytest.mark.parametrize("said", TASKS_WITH_CLASSES, ids=["named", "classification", "multi-label"])
def test_a_part_of_a_softmax_gets_no_second_activation(said: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match=r"ends in a softmax.*--activation none"):
        studied(made("PartOfSoftmax"), **said)


@pytest.mark.parametrize("name", ["ClippedSigmoid", "ClippedSoftmax", "HardSigmoid", "PartOfSoftmax"])
def test_both_answers_to_that_question_work(name: str) -> None:
    for task in ("classification", "multi-label"):
        decided, _ = studied(made(name), task=task, activation="none")
        assert (decided.task, decided.activation) == (task, Activation("none", known="said"))
    if name != "PartOfSoftmax":
        decided, _ = studied(made(name), task="multi-label", activation="sigmoid")
        assert decided.activation == Activation("sigmoid", known="said")


def test_names_of_classes_do_not_make_scores_of_any_number() -> None:
    """W2: percent are no scores for a softmax, and nobody said that they are."""
    with pytest.raises(SourceError, match=r"the operation mul.*--task classification"):
        studied(made("Percent"), named=True)


@pytest.mark.parametrize("name", ["OneScore", "Pooled", "NormAfterLinear", "Tanh", "HardSigmoid"])
@pytest.mark.parametrize("task", ["regression", "embedding"])
def test_the_way_out_works(name: str, task: str) -> None:
    decided, _ = studied(made(name), task=task)
    assert decided.task == task
    assert decided.activation.function == "none"


@pytest.mark.parametrize(
    ("name", "said", "task", "applied"),
    [
        ("OneScore", {"task": "multi-label"}, "multi-label", Activation("sigmoid", known="said")),
        ("OneScore", {"activation": "sigmoid"}, "multi-label", Activation("sigmoid", known="said")),
        ("Net", {"task": "multi-label"}, "multi-label", Activation("sigmoid", known="said")),
        ("Net", {"activation": "softmax"}, "classification", Activation("softmax", known="said")),
        ("Net", {"task": "classification"}, "classification", Activation("softmax", known="assumed")),
        (
            "Net",
            {"task": "classification", "activation": "sigmoid"},
            "classification",
            Activation("sigmoid", known="said"),
        ),
        ("Pooled", {"task": "classification"}, "classification", Activation("softmax", known="assumed")),
        ("Pooled", {"named": True}, "classification", Activation("softmax", known="assumed")),
        ("Softmax", {"activation": "none"}, "classification", SOFTMAX),
        ("Sigmoid", {"activation": "none"}, "multi-label", SIGMOID),
        ("Sigmoid", {"task": "classification"}, "classification", SIGMOID),
        ("HardSigmoid", {"task": "multi-label", "activation": "none"}, "multi-label", Activation("none", known="said")),
        ("Sigmoid", {"task": "regression"}, "regression", SIGMOID),
        ("Net", {"task": "embedding"}, "embedding", Activation("none", by="network", known="said")),
        ("Normalised", {"activation": "none"}, "embedding", AS_IT_IS),
        ("Net", {"task": "embedding", "normalize": True}, "embedding", Activation("l2", known="said")),
        ("Normalised", {"normalize": True}, "embedding", Activation("l2", by="network", known="graph")),
        ("WithoutHead", {"normalize": True}, "embedding", Activation("l2", known="said")),
    ],
)
def test_what_the_user_says_decides(name: str, said: dict[str, Any], task: str, applied: Activation) -> None:
    """W1, W4."""
    decided, _ = studied(made(name), **said)
    assert (decided.task, decided.activation) == (task, applied)


@pytest.mark.parametrize(
    ("name", "said", "says"),
    [
        ("Softmax", {"activation": "softmax"}, "once more: leave --activation out"),
        ("HandmadeSoftmax", {"activation": "softmax"}, "every row of them sums to 1.*leave --activation out"),
        ("LogSoftmax", {"activation": "softmax"}, "ends in a log-softmax.*leave --activation out"),
        ("Sigmoid", {"activation": "sigmoid"}, "ends in a sigmoid.*leave --activation out"),
        ("Softmax", {"task": "multi-label"}, "say --task classification"),
        ("Net", {"task": "multi-label", "activation": "softmax"}, "--activation sigmoid, or --task classification"),
        ("Net", {"task": "classification", "activation": "none"}, "not probabilities.*leave --activation out"),
        ("Net", {"activation": "none"}, "add --task regression or --task embedding"),
        ("Net", {"task": "regression", "activation": "sigmoid"}, "leave it out"),
        ("Net", {"normalize": True}, "the task is classification: say --task embedding, or leave it out"),
        ("Net", {"task": "embedding", "activation": "softmax"}, "would change them: leave it out"),
        ("OneScore", {"task": "classification"}, "one class leaves nothing to choose.*--task regression"),
        ("OneScore", {"activation": "softmax"}, "one class leaves nothing to choose.*--task regression"),
    ],
)
def test_a_contradiction_is_refused_and_nothing_is_applied_twice(name: str, said: dict[str, Any], says: str) -> None:
    with pytest.raises(SourceError, match=says):
        studied(made(name), **said)


@pytest.mark.parametrize("name", ["BatchNorm", "MeanOfRows", "RowsAttend", "SeededInside"])
def test_a_network_whose_rows_depend_on_each_other_is_given_one_row_at_a_time(name: str) -> None:
    """W6: the answer to a picture must not depend on strangers' pictures."""
    _, probed = studied(made(name), task="classification")
    assert probed.filled.rows == 1
    assert probed.one_row is not None
    assert "what else is in the batch" in probed.one_row
    network = made(name)
    rows = torch.from_numpy(probed.inputs["input"])
    with torch.inference_mode():
        alone = torch.cat([network(row[None]) for row in rows])
    assert np.allclose(probed.numbers, alone.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["Net", "NormAfterLinear", "Softmax", "OnePlaceHead"])
def test_a_network_whose_rows_are_independent_is_given_batches(name: str) -> None:
    _, probed = studied(made(name), task="embedding")
    assert probed.one_row is None
    assert probed.filled.rows is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("AlwaysDropping", r"Net is random.*training=self\.training"),
        ("Noisy", "Net is random.*no noise"),
        ("Remembers", "differ from run to run.*keeps something from earlier inputs"),
        ("NeedsCompany", "needs more than one row at a time.*track_running_stats=True"),
        ("Broken", "not finite"),
        ("NoTensor", "returns str without a tensor.*PythonModel"),
    ],
)
def test_a_network_that_would_never_start_is_refused_when_it_is_built(name: str, says: str) -> None:
    """U10: the true sentence, and no bundle."""
    with pytest.raises(SourceError, match=says):
        studied(made(name))


def test_of_several_outputs_the_user_says_which_is_the_answer() -> None:
    """W7, U7: of a tuple by its number, of a mapping by its key. Of scores and probabilities the latter are taken."""
    with pytest.raises(SourceError, match=r"2 outputs \(0 float32\[N, 5\], 1 float32\[N, 10\]\).*--output-name 0"):
        studied(made("ScoresAndFeatures"))
    with pytest.raises(SourceError, match="--output-name features is not an output of"):
        studied(made("ScoresAndFeatures"), output="features")
    _, probed = studied(made("ScoresAndFeatures"), output="1", task="embedding")
    assert (probed.output.name, probed.output.shape) == ("1", (10,))
    decided, probed = studied(made("ScoresAndProbabilities"))
    assert (probed.output.name, decided.activation) == ("scores.softmax", SOFTMAX)
    decided, probed = studied(made("ScoresAndProbabilities"), output="logits")
    assert (probed.output.name, decided.activation.known) == ("logits", "assumed")
    decided, probed = studied(made("OneInADict"))
    assert decided.task == "classification"
    with pytest.raises(SourceError, match="has no effect on Net, which has one output"):
        studied(made("Net"), output="0")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["Softmax", "HandmadeLogSoftmax", "Sigmoid", "Pooled", "MeanOfRows"])
@pytest.mark.parametrize("form", ["script", "trace", "program"])
def test_programs_are_recorded_as_eager_code_is(name: str, form: str) -> None:
    network, sample = made(name), torch.zeros(2, 3, SIDE, SIDE)
    program: Any
    if form == "program":
        program = torch.export.export(network, (sample,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    else:
        program = torch.jit.trace(network, sample)
        if form == "script":
            program = torch.jit.freeze(program)
    assert _verdict(network) == _verdict(program)


def _verdict(network: Any) -> object:
    try:
        decided, probed = studied(network)
    except SourceError as error:
        return str(error)
    return decided.task, decided.activation, probed.one_row is None


def test_a_network_over_numbers_keeps_its_own_ending() -> None:
    """The tensor task adds nothing, and records what the network ends in."""
    torch.manual_seed(0)
    for last, expected in ((nn.Softmax(dim=1), SOFTMAX), (nn.Sigmoid(), SIGMOID), (nn.Identity(), AS_IT_IS)):
        network = nn.Sequential(nn.Linear(4, 3), last)
        filled = Filled(network, "Net", None, TensorConfig(), (TensorSpec("input", "float32", (4,)),))
        probed = probing.probe(filled, None, tell=lambda text: None)
        assert activation.over_numbers(probed.ending, probed.numbers) == expected
