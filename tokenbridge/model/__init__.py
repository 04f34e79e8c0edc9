"""The autoregressive model: a masked spatial transformer and a dimension-wise head."""

from tokenbridge.model.transformer import TokenBridgeTransformer

__all__ = ["TokenBridgeTransformer"]
