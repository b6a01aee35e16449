"""The stub says exactly what the built module offers."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import tidegate.ids

sensor_module = pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
STUB = ast.parse(Path(tidegate.ids.__path__[0], "_sensor.pyi").read_text())


def parameters(function: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in (*function.args.posonlyargs, *function.args.args) if argument.arg != "cls"]


def stubbed() -> dict[str, list[str]]:
    """Return every callable of the stub with its parameters; a class stands for its constructor."""
    found: dict[str, list[str]] = {}
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = parameters(node)
        elif isinstance(node, ast.ClassDef) and node.name != "SensorError":
            for method in (item for item in node.body if isinstance(item, ast.FunctionDef)):
                name = node.name if method.name == "__new__" else f"{node.name}.{method.name}"
                found[name] = parameters(method)
    return found


def built() -> dict[str, list[str]]:
    """Return every callable of the module with the parameters that its signature text gives."""
    found: dict[str, list[str]] = {}

    def note(name: str, thing: object) -> None:
        assert thing.__text_signature__, f"{name} has no signature"
        found[name] = [p.replace("$", "") for p in inspect.signature(thing).parameters]

    for name, thing in vars(sensor_module).items():
        if name.startswith("__") or name == "SensorError":
            continue
        note(name, thing)
        if inspect.isclass(thing):
            for method, function in vars(thing).items():
                if not method.startswith("__"):
                    note(f"{name}.{method}", function)
    return found


def test_every_name_and_every_parameter_agrees():
    assert stubbed() == built()


def test_the_exception_is_one_and_its_own():
    assert issubclass(sensor_module.SensorError, Exception)
    with pytest.raises(sensor_module.SensorError) as caught:
        sensor_module.Sensor("{")
    assert caught.value.args[0] == "ids.config.invalid"
