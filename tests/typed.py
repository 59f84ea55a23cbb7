"""What a type checker, and so an editor, makes of the public names. Checked by `make types`; nothing here is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from typing_extensions import assert_type

import varangian as vg

rule, mixing, attack = vg.Median(f=1), vg.NearestNeighborMixing(f=1), vg.Little(factor=1.5)
x, a = torch.ones(5, 2), np.ones((5, 2))

assert_type(rule(x), torch.Tensor)
assert_type(rule([x[0], x[1]]), torch.Tensor)
assert_type(rule(a).tobytes(), bytes)
assert_type(mixing(x), torch.Tensor)
assert_type(attack(x, f=1), torch.Tensor)
assert_type(vg.CenteredClipping(f=1, tau=1.0)(x, previous=x[0]), torch.Tensor)

algorithm = vg.Algorithm(worker=(vg.Clip(2.0), vg.Momentum(0.9)), rule=vg.MultiKrum(f=1))
state = algorithm.init(5, 2)
sent, state = algorithm.send(x, state)
update, state = algorithm.aggregate(sent, state)
assert_type(update, torch.Tensor)
assert_type(state, vg.State)

experiment = vg.Experiment(rule="median", attack="little", learning_rate=0.1)
result = vg.run(experiment)
assert_type(result, vg.Result)
assert_type(result.max_accuracy, float)
assert_type(vg.RULES["median"], type[vg.Rule])
vg.Experiment(rule=vg.Median(f=3), attack=vg.Little(1.0), partition=vg.PARTITIONS["iid"]())
for pre in ("nnm", ["nnm"], (mixing, "arc"), mixing, None):
    assert_type(vg.Experiment(pre=pre).pre, tuple[str, ...])
for rate in (0.1, "0.1,50:0.01", [(0, 0.1), (50, 0.01)]):
    assert_type(vg.Experiment(learning_rate=rate).rate(0), float)
assert_type(result.model()(x), Any)
assert_type(result.from_disk, bool)
