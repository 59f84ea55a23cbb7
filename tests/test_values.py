"""Stages, and what they hand each other, are values: nothing is written to them, and equal ones are equal."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

import pytest
import torch

import catalog
from varangian import core
from varangian.core.attacks import Attack
from varangian.core.attacks.task import Task
from varangian.testing import Check

OWNERS: dict[str, Any] = {**catalog.RULES, **catalog.MIXINGS, **catalog.ATTACKS, **catalog.TRANSFORMS}
WRITTEN = {"_Known"}  # what a process remembers


def kept() -> dict[str, type]:
    """The dataclasses of core."""
    found = {}
    for place in pkgutil.walk_packages(core.__path__, "varangian.core."):
        if ".cuda" not in place.name:
            module = importlib.import_module(place.name)
            for name, value in vars(module).items():
                own = isinstance(value, type) and value.__module__ == place.name
                if own and "__dataclass_params__" in vars(value):
                    found[name] = value
    return found


KEPT = kept()


@pytest.mark.parametrize("name", sorted(KEPT.keys() - WRITTEN))
def test_nothing_is_written_to_it(name: str) -> None:
    assert vars(KEPT[name])["__dataclass_params__"].frozen


@pytest.mark.parametrize("name", OWNERS)
def test_an_equal_one_is_equal_and_another_is_not(name: str) -> None:
    stage = OWNERS[name]
    again = dataclasses.replace(stage)
    assert again == stage
    assert hash(again) == hash(stage)
    assert repr(again) == repr(stage)
    for other in OWNERS.values():
        assert (other == stage) == (other is stage)
    for field in dataclasses.fields(stage):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stage, field.name, getattr(stage, field.name))


@pytest.mark.parametrize("name", OWNERS)
def test_what_it_is_exempt_from_is_a_check(name: str) -> None:
    assert set(getattr(OWNERS[name], "exempt", ())) <= set(Check.__members__)


@pytest.mark.parametrize("name", catalog.ATTACKS)
def test_an_attack_on_vectors_leaves_data_alone(name: str) -> None:
    attack, inputs, labels, task = catalog.ATTACKS[name], torch.ones(2, 3), torch.zeros(2, dtype=torch.long), Task()
    if type(attack).poison is Attack.poison:
        found = attack.poison(inputs, labels, task)
        assert found[0] is inputs
        assert found[1] is labels
    if type(attack).trigger is Attack.trigger:
        assert attack.trigger(inputs, task) is inputs
