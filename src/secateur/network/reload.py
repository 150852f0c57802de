"""Loads a checkpoint with plain transformers and writes its logits: run as a file in a fresh process.

It imports nothing of secateur, so that what it proves holds where secateur isn't installed.

    python reload.py FOLDER TRUST OUT < ids.json        TRUST is 0 or 1, ids a list of windows
"""

import json
import sys

import torch
import transformers
from safetensors.torch import save_file


def main(folder: str, trust: str, out: str) -> None:
    """Writes `output`: float32, of the model's first output."""
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    architecture = (config.get("architectures") or ["AutoModel"])[0]
    plain = getattr(transformers, architecture, None)
    causal = "CausalLM" in architecture
    model_class = plain or (transformers.AutoModelForCausalLM if causal else transformers.AutoModel)
    model = model_class.from_pretrained(folder, dtype="auto", trust_remote_code=trust == "1").eval()
    with torch.inference_mode():
        output = model(torch.tensor(json.load(sys.stdin)))[0]
    save_file({"output": output.float().contiguous()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
