"""A training loop of one's own: per-worker gradients as rows, the algorithm between them and any optimizer of torch.

python examples/own_loop.py
"""

import torch
from torch import nn

import varangian as vg

n, f, batch = 10, 2, 32
data = vg.DATASETS["digits"]().train
inputs, labels = data.inputs.float() / 16, data.labels
torch.manual_seed(1)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 10))

workers = vg.WorkerGradients(model)
algorithm = vg.Algorithm(worker=(vg.Momentum(0.9),), pre=(vg.NearestNeighborMixing(f),), rule=vg.Median(f))
state = algorithm.init(n - f, workers.d)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(100):
    drawn = torch.randint(len(labels), (n - f, batch))
    gradients, _losses = workers.rows(inputs[drawn], labels[drawn], step)
    sent, state = algorithm.send(gradients, state)
    vectors = torch.cat([sent, vg.Little()(sent, f)])  # what attackers send comes last
    update, state = algorithm.aggregate(vectors, state)
    workers.set_grad(update)
    optimizer.step()

correct = (model.eval()(inputs).argmax(1) == labels).double().mean()
print(f"accuracy {correct:.1%} on the training data")
