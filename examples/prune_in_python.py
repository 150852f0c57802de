"""Prunes a model from Python and generates with it: python examples/prune_in_python.py [MODEL]"""

import sys

import secateur

model = sys.argv[1] if len(sys.argv) > 1 else "demo:smollm2-135m"
result = secateur.prune(model, sparsity=0.5, samples=16, length=128)
print(result.table())

network = result.network
ids = network.tokenizer("Once upon a time", return_tensors="pt").input_ids
print(network.tokenizer.decode(network.model.generate(ids, max_new_tokens=20)[0]))
