"""The model that an MLflow server runs: rows of class, seed and sampling settings in, base64 PNG images out.

MLflow copies this file into the model and executes it when the model is loaded.
"""

import base64
import io
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

SETTINGS = {"guidance_scale": float, "temperature": float, "steps": int}  # columns that may be absent


class ServedModel(PythonModel):
    """A model that generates one image per row, as the pipeline does with a generator of the row's seed.

    Rows are drawn one at a time, so that an image does not depend on its neighbours, not even in its last bits.
    """

    def load_context(self, context: Any) -> None:
        from tokenbridge.sampling.pipeline import TokenBridgePipeline  # slow; only a server needs it

        self.pipeline = TokenBridgePipeline.from_pretrained(context.artifacts["pipeline"])
        self.limits = context.model_config

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """Generate an image for each row; ``class`` is a name or an index. Nothing is drawn unless every row is valid.

        Raises:
            MlflowException: naming the row, the problem and what is allowed; a server answers 400.
        """
        rows = model_input.to_dict("records")
        if len(rows) > self.limits["max_rows"]:
            raise _refusal(f"{len(rows)} rows: ask for at most {self.limits['max_rows']} at a time")
        return [self.draw(request) for request in [self.read(number, row) for number, row in enumerate(rows)]]

    def read(self, number: int, row: dict[Any, Any]) -> dict[str, Any]:
        """Check a row, and return the arguments of the pipeline's call and the seed."""
        from tokenbridge.config.model import SamplingSettings
        from tokenbridge.sampling.sampler import masked_counts

        try:
            label = self.pipeline.label_index(row["class"])
            settings = SamplingSettings(**_given(row, SETTINGS))
            most, positions = self.limits["max_steps"], self.pipeline.transformer.positions
            if settings.steps is not None and settings.steps > most:
                raise ValueError(f"steps is {settings.steps}: ask for at most {most}")
            masked_counts(positions, settings.steps_for(positions))
            seed = _given(row, {"seed": int}).get("seed", 0)
        except ValueError as error:
            raise _refusal(f"row {number}: {error}") from error
        return {
            "class_labels": [label],
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "temperature": settings.temperature,
            "seed": seed,
        }

    def draw(self, request: dict[str, Any]) -> str:
        import torch  # slow to import; only a server needs it

        generator = torch.Generator().manual_seed(request.pop("seed"))
        images, *_ = self.pipeline(**request, generator=generator, return_dict=False)
        buffer = io.BytesIO()
        images[0].save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()


def _given(row: dict[Any, Any], kinds: dict[str, type]) -> dict[str, Any]:
    """Return the columns that are present; a table cannot distinguish a missing cell from NaN."""
    columns = [name for name in kinds if row.get(name) is not None]
    for name in columns:
        if row[name] != row[name]:
            raise ValueError(f"{name} is NaN or missing: give it in every row, or in none")
    return {name: kinds[name](row[name]) for name in columns}


def _refusal(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


set_model(ServedModel())
