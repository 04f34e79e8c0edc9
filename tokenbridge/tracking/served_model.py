"""What an MLflow server runs: rows of class, seed and guidance scale in, base64 PNG images out.

MLflow copies this file into the model and executes it when the model is loaded.
"""

import base64
import io
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class ServedModel(PythonModel):
    """Generates one image per row; equal rows give equal images."""

    def load_context(self, context: Any) -> None:
        from tokenbridge.pipeline import TokenBridgePipeline  # heavy, and needed by a server only

        self.pipeline = TokenBridgePipeline.from_pretrained(context.artifacts["pipeline"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """Generate from a data frame; ``class`` is a name or an index.

        Raises:
            ValueError: naming the classes there are; a server answers 400.
        """
        return [self.generate(row) for row in model_input.to_dict("records")]

    def generate(self, row: dict[Any, Any]) -> str:
        import torch  # heavy, and needed by a server only

        images, *_ = self.pipeline(
            class_labels=[str(row["class"])],
            guidance_scale=float(row["guidance_scale"]),
            generator=torch.Generator().manual_seed(int(row["seed"])),
            return_dict=False,
        )
        buffer = io.BytesIO()
        images[0].save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()


set_model(ServedModel())
