"""The autoregressive model: a spatial transformer, whose trunk is masked or causal, and a head."""

from tokenbridge.model.transformer import AutoregressiveModel, TokenBridgeTransformer
from tokenbridge.model.trunks import load_model, make_model

__all__ = ["AutoregressiveModel", "TokenBridgeTransformer", "load_model", "make_model"]
