"""Small functions that handlers import: exceptions with a status, and the table of class names."""

import inspect
import json
import os
from types import ModuleType
from typing import Any


class PredictionException(Exception):
    """A request failed, and is answered with this status and this message."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """The classes that a module defines itself, below `parent_class` if that is given."""
    return [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if each.__module__ == module.__name__ and (parent_class is None or issubclass(each, parent_class))
    ]


def load_label_mapping(mapping_file_path: str) -> dict[str, Any] | None:
    """The table of class names in a JSON file, by class index as text; `None` where there is no file.

    Its forms: `{"0": "cat"}`, `{"0": ["n01", "cat"]}` of which the last counts, `{"object_type_names": ["cat", ...]}`.
    """
    if not os.path.isfile(mapping_file_path):
        return None
    with open(mapping_file_path, encoding="utf-8") as file:
        found = json.load(file)
    if not isinstance(found, dict):
        raise ValueError(f"{os.path.basename(mapping_file_path)} is no table of class names")
    names = found.get("object_type_names")
    if isinstance(names, list):
        return {str(index): name for index, name in enumerate(names)}
    table = {str(key): value[-1] if isinstance(value, list) else value for key, value in found.items()}
    if odd := [key for key, value in table.items() if not isinstance(value, str)]:
        raise ValueError(f"{os.path.basename(mapping_file_path)} has a name for class {odd[0]} that is no text")
    return table


def map_class_to_label(
    probs: Any, mapping: dict[str, Any] | None = None, lbl_classes: Any = None
) -> list[dict[str, Any]]:
    """Each row of numbers as a table from class name to number; without a mapping by class index.

    `lbl_classes`: the class index of each number, where they are not in order.
    """
    if not isinstance(probs, list):
        raise TypeError("Convert classes to list before doing mapping")
    found = []
    for row, numbers in enumerate(probs):
        indices = range(len(numbers)) if lbl_classes is None else lbl_classes[row]
        found.append({_label(mapping, index): number for index, number in zip(indices, numbers, strict=False)})
    return found


def _label(mapping: dict[str, Any] | None, index: Any) -> Any:
    return str(index) if mapping is None else mapping[str(index)]
