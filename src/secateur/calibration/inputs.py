"""What a model is fed of a window: tokens alone, or one input for its encoder and one for its decoder."""

from __future__ import annotations

from torch import Tensor

from secateur.calibration.windows import Windows
from secateur.errors import CalibrationError
from secateur.network.network import Network


def model_inputs(network: Network, windows: Windows) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns a model's first argument, and those that follow by name.

    Args:
        network: The model. With `halves`, its encoder gets the first half of each window's tokens (the smaller one
            of an odd length) and its decoder the rest; with `audio`, the encoder gets the features and the decoder
            all tokens.
        windows: Windows without padding, at least one.

    Returns:
        (windows, length) token ids or (windows, mels, frames) features, in the model's dtype; and the decoder's
        token ids, if it has one.

    Raises:
        CalibrationError: The model hears sounds, but the windows hold none.
    """
    match network.family.inputs:
        case "text":
            return windows.ids, {}
        case "halves":
            return windows.ids[:, : windows.length // 2], {"decoder_input_ids": predicted_ids(network, windows)}
        case "audio":
            if windows.features is None:
                raise CalibrationError(f"{network.architecture} hears sounds, but {windows.source} holds none.")
            return windows.features.to(network.model.dtype), {"decoder_input_ids": windows.ids}


def predicted_ids(network: Network, windows: Windows) -> Tensor:
    """Returns the tokens that a model reads and predicts, each from those before it.

    Args:
        network: The model.
        windows: Windows without padding.

    Returns:
        (windows, length): the windows' own tokens; with `halves`, the token that the decoder starts from and the
        second half.
    """
    if network.family.inputs != "halves":
        return windows.ids
    config = network.model.config
    named = (getattr(config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
    start = next((token for token in named if isinstance(token, int)), 0)
    half = windows.ids[:, windows.length // 2 - 1 :].clone()
    half[:, 0] = start
    return half
