"""Trains a fully connected network on scikit-learn's digits and removes half of its neurons on the way.

pip install scikit-learn
python examples/digits_neurons.py [EPOCHS]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import secateur
from secateur.schedules import Cubic

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
digits = load_digits()
images, classes = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
train, test = 1400, slice(1400, None)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
steps = epochs * -(-train // 32)
schedule = Cubic(0.5, begin=steps // 4, end=steps * 3 // 4, every=max(1, steps // 20))
pruner = secateur.TrainingPruner(
    model, schedule, unit="neuron", score="taylor", cut="during", optimizer=optimizer, example_inputs=images[:1]
)

for epoch in range(epochs):
    for rows in torch.randperm(train).split(32):
        nn.functional.cross_entropy(model(images[rows]), classes[rows]).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    if epoch % 5 == 4 or epoch == epochs - 1:
        with torch.no_grad():
            right = (model(images[test]).argmax(1) == classes[test]).float().mean()
        widths = [layer.out_features for layer in model if isinstance(layer, nn.Linear)]
        print(f"epoch {epoch + 1}: {widths} outputs, {right:.1%} of the held-out digits are right")

model = pruner.finish()
print(sum(parameter.numel() for parameter in model.parameters()), "parameters are left of 17,226")
