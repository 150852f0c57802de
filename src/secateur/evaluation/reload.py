"""Loads a checkpoint with plain transformers and writes its logits: run as a file in a fresh process.

It imports nothing of secateur, so that what it proves holds where secateur isn't installed.

    python reload.py FOLDER TRUST INPUTS OUT BLOCKS

TRUST is 0 or 1; INPUTS a safetensors file of the model's arguments by name. BLOCKS is the name of the list of blocks
if they are to stay on the disk until they are used, and empty otherwise.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(folder: str, trust: str, inputs: str, out: str, blocks: str = "") -> None:
    """Writes `output`: float32, of the model's first output."""
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    architecture = (config.get("architectures") or ["AutoModel"])[0]
    plain = getattr(transformers, architecture, None)
    causal = "CausalLM" in architecture
    model_class = plain or (transformers.AutoModelForCausalLM if causal else transformers.AutoModel)
    for auto, target in config.get("auto_map", {}).items():
        if target.rpartition(".")[2] == architecture:  # the code beside the weights defines it
            model_class = getattr(transformers, auto)
    options = {}
    if blocks:
        places = offloaded(model_class, transformers.AutoConfig.from_pretrained(folder), blocks)
        options = {"device_map": places, "offload_folder": str(Path(out).parent)}
    model = model_class.from_pretrained(folder, dtype="auto", trust_remote_code=trust == "1", **options).eval()
    with torch.inference_mode():
        output = model(**load_file(inputs))[0]
    save_file({"output": output.float().contiguous()}, out)


def offloaded(model_class: Any, config: Any, blocks: str) -> dict[str, str]:
    """Returns a device map that has the blocks on the disk and everything else in memory."""
    build = getattr(model_class, "_from_config", None) or model_class.from_config
    with torch.device("meta"):
        model = build(config)
    places = {blocks: "disk"}
    path = ""
    for part in blocks.split("."):  # beside every module on the way to the blocks, whatever it holds
        module = model.get_submodule(path)
        for name in [*dict(module.named_children()), *dict(module.named_parameters(recurse=False))]:
            if name != part:
                places[f"{path}.{name}" if path else name] = "cpu"
        path = f"{path}.{part}" if path else part
    return places


if __name__ == "__main__":
    main(*sys.argv[1:])
