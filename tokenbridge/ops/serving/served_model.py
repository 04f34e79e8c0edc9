"""The model that an MLflow server runs: rows of class, seed and sampling settings in, base64 PNG images out.

MLflow copies this file into the model and executes it when the model is loaded.
"""

import base64
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

SETTINGS = ("guidance_scale", "temperature", "steps")
COLUMNS = ("class", "seed", *SETTINGS)  # all but the first may be absent
SEEDS = 2**63  # seeds lie in [-SEEDS, SEEDS)
EXACT = 2**53  # a table turns a column of integers and fractions into floats, which hold integers exactly up to here


class ServedModel(PythonModel):
    """A model that generates one image per row, as the pipeline does with a generator of the row's seed.

    Rows are drawn one at a time, so that an image does not depend on its neighbours, not even in its last bits. The
    model's signature has no columns, because MLflow would drop unknown ones and cut numbers to the types of the others.
    """

    def load_context(self, context: Any) -> None:
        from tokenbridge.base.device import best_device  # slow; only a server needs it
        from tokenbridge.sampling.pipeline import TokenBridgePipeline

        self.pipeline = TokenBridgePipeline.from_pretrained(context.artifacts["pipeline"]).to(best_device())
        self.limits = context.model_config

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """Generate an image for each row; ``class`` is a name or an index. Nothing is drawn unless every row is valid.

        Raises:
            MlflowException: naming the row, the column, the problem and what is allowed; a server answers 400.
        """
        rows = self.rows(model_input)
        images = []
        for number, request in enumerate([self.read(number, row) for number, row in enumerate(rows)]):
            with _refusals(number):
                images.append(self.draw(request))
        return images

    def rows(self, model_input: Any) -> list[dict[Any, Any]]:
        """Return the rows of a table, which has only columns of ``COLUMNS``, each at most once."""
        try:
            table = pd.DataFrame(model_input)
        except (ValueError, TypeError) as error:
            raise _refusal(f"the request is no table ({error}): send dataframe_records") from error
        wrong = [str(name) for name in table.columns[table.columns.duplicated()]]
        wrong += [str(name) for name in table.columns if name not in COLUMNS]
        if wrong:
            raise _refusal(f"unknown or repeated columns {wrong}: give each of {', '.join(COLUMNS)} at most once")
        if len(table) > self.limits["max_rows"]:
            raise _refusal(f"{len(table)} rows: ask for at most {self.limits['max_rows']} at a time")
        return list(table.to_dict("records"))

    def read(self, number: int, row: dict[Any, Any]) -> dict[str, Any]:
        """Check a row, and return the arguments of the pipeline's call and the seed."""
        from tokenbridge.config.model import SamplingSettings, sampling_mistakes
        from tokenbridge.config.types import refuse
        from tokenbridge.model.schedule import masked_counts
        from tokenbridge.sampling.sampler import head_mistakes

        with _refusals(number):
            given = _given(row)
            if not isinstance(given.get("class"), str):
                raise ValueError(f"class is {given.get('class')!r}: give a name, or an index as text")
            label = self.pipeline.label_index(given["class"])
            settings = SamplingSettings(**{name: given[name] for name in SETTINGS if name in given})
            most, model = self.limits["max_steps"], self.pipeline.transformer
            if settings.steps is not None and settings.steps > most:
                raise ValueError(f"steps is {settings.steps}: ask for at most {most}")
            masked_counts(model.units, settings.steps_for(model.trunk, model.units))
            refuse(sampling_mistakes(model.trunk, settings, model.units) | head_mistakes(model, settings))
            seed = given.get("seed", 0)
            if not -SEEDS <= seed < SEEDS:
                raise ValueError(f"seed is {seed}: must be at least -2**63 and less than 2**63")
        return {
            "class_labels": [label],
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "temperature": settings.temperature,
            "seed": seed,
        }

    def draw(self, request: dict[str, Any]) -> str:
        import torch  # slow to import; only a server needs it

        from tokenbridge.images.decoding import encode_png

        generator = torch.Generator().manual_seed(request.pop("seed"))
        images, *_ = self.pipeline(**request, generator=generator, return_dict=False)
        return base64.b64encode(encode_png(images[0])).decode()


def _given(row: dict[Any, Any]) -> dict[str, Any]:
    """Return the columns that are present; a table cannot distinguish a missing cell from NaN."""
    given = {name: value for name, value in row.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name} is NaN or missing: give it in every row, or in none")
        if name != "class" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} is {value!r:.100}: must be a number")
        if name in ("seed", "steps") and isinstance(value, float):
            if not value.is_integer() or abs(value) > EXACT:
                raise ValueError(f"{name} is {value}: must be an integer")
            given[name] = int(value)
    return given


@contextmanager
def _refusals(number: int) -> Iterator[None]:
    """Turn the mistakes that the body finds in row ``number`` into answers with status 400."""
    try:
        yield
    except ValueError as error:
        raise _refusal(f"row {number}: {error}") from error


def _refusal(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


set_model(ServedModel())
