"""Notices ONNX graphs that say what they make of missing numbers (NaN): those of LightGBM, XGBoost and scikit-learn's
HistGradientBoosting, and imputers.

It is proven by the graph: every way that the numbers take ends in trees with a branch for missing ones, or in an
imputer for NaN, and nothing before these computes with them. Trees without such a branch compare with NaN as well, and
answer something that their trainer never meant. Reads the graph and runs nothing.
"""

import math

import onnx
from onnx import TensorProto, helper

_PASSING = frozenset({"Identity", "Cast", "Reshape", "Concat", "FeatureVectorizer", "ArrayFeatureExtractor", "Scaler"})
"""Operations that give NaN where they were given NaN, and other numbers nothing of it."""
_TREES = frozenset({"TreeEnsembleRegressor", "TreeEnsembleClassifier", "TreeEnsemble"})
_TRACKS = "nodes_missing_value_tracks_true"
_DECIMAL = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def taken(model: onnx.ModelProto, name: str) -> bool:
    """Whether the numbers of that input of the graph may be missing."""
    ways, ends = {name}, 0
    for node in model.graph.node:
        if not ways.intersection(node.input):
            continue
        if node.op_type in _TREES and node.input[0] in ways:
            if not any(_attribute(node, _TRACKS)):
                return False
            ends += 1
        elif node.op_type == "Imputer":
            [replaced] = _attribute(node, "replaced_value_float") or [0.0]
            if not math.isnan(replaced):
                return False
            ends += 1
        elif node.op_type in _PASSING and not (node.op_type == "Cast" and _attribute(node, "to")[0] not in _DECIMAL):
            ways.update(node.output)
        else:
            return False
    return ends > 0 and not any(each.name in ways for each in model.graph.output)


def _attribute(node: onnx.NodeProto, name: str) -> list[float]:
    """The numbers of an attribute; empty where the node has none of that name."""
    for each in node.attribute:
        if each.name == name:
            found = helper.get_attribute_value(each)
            if isinstance(found, onnx.TensorProto):
                return [float(number) for number in onnx.numpy_helper.to_array(found).ravel()]
            return list(found) if isinstance(found, list) else [found]
    return []
