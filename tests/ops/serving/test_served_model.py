"""What a model server's requests may hold; tests/infra/tracking/test_serving.py asks a server over HTTP."""

from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from tests.support.small_model import random_model
from tests.support.small_pipeline import build_pipeline
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.serving.served_model import COLUMNS, ServedModel
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([1]))


@pytest.fixture
def served(model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer) -> ServedModel:
    served = ServedModel()
    served.pipeline, served.limits = build_pipeline(model, quantizer), {"max_rows": 3, "max_steps": 12}
    return served


def ask(served: ServedModel, *rows: Any) -> list[str]:
    return served.predict(None, pd.DataFrame(rows))


def test_equal_rows_draw_equal_images_wherever_they_stand(served: ServedModel) -> None:
    row = {"class": "Bag", "seed": 2**62 + 1, "steps": 2, "temperature": 0.5}
    first, *others = ask(served, row, row | {"seed": 2**62}, row | {"steps": 2.0})
    assert ask(served, row) == [first]
    assert first not in others[:1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"seed": 2**63}, "seed is 9223372036854775808: must be"),
        ({"seed": -(2**63) - 1}, "seed is -9223372036854775809: must be"),
        ({"seed": 1e30}, r"seed is 1e\+30: must be an integer"),
        ({"seed": 2.0**53 + 2}, "seed is 9007199254740994.0: must be an integer"),
        ({"seed": 1.5}, "seed is 1.5: must be an integer"),
        ({"seed": True}, "seed is True: must be a number"),
        ({"seed": "7"}, "seed is '7': must be a number"),
        ({"seed": [7]}, r"seed is \[7\]: must be a number"),
        ({"steps": 2.5}, "steps is 2.5: must be an integer"),
        ({"steps": True}, "steps is True: must be a number"),
        ({"steps": 0}, "steps is 0: must be greater than 0"),
        ({"steps": 13}, "steps is 13: ask for at most 12"),
        ({"guidance_scale": 1e308}, r"guidance_scale is 1e\+308: must be less than"),
        ({"guidance_scale": False}, "guidance_scale is False"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"temperature": 1e-320}, "temperature is 1e-320: must be 0"),
        ({"temperature": float("nan")}, "temperature is NaN or missing"),
        ({"class": 1}, "class is 1: give a name, or an index as text"),
        ({"class": None}, "class is None"),
        ({"class": "Hat"}, "no class 'Hat'"),
        ({"colour": "red"}, r"unknown or repeated columns \['colour'\]: give each of class, seed"),
        ({"Seed": 1}, r"columns \['Seed'\]"),
        ({"top_p": 0.5}, r"columns \['top_p'\]"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(served: ServedModel, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(MlflowException, match=reason) as refusal:
        ask(served, {"class": "Bag", "steps": 1} | row)
    assert refusal.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"class": "Bag"}, "the request is no table"),
        (pd.DataFrame([["Bag", 1, 2]], columns=["class", "seed", "seed"]), r"columns \['seed'\]"),
        (pd.DataFrame([["Bag"]]), r"columns \['0'\]"),
        (pd.DataFrame([{"seed": 1}]), "row 0: class is None"),
        (pd.DataFrame([{"class": "Bag"}] * 4), "4 rows: ask for at most 3"),
    ],
)
def test_a_request_that_is_no_table_of_rows_is_refused(served: ServedModel, request_: Any, reason: str) -> None:
    with pytest.raises(MlflowException, match=reason):
        served.predict(None, request_)


def test_weights_that_are_not_finite_are_no_picture(served: ServedModel) -> None:
    with torch.no_grad():
        served.pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(MlflowException, match=r"row 0: .*pixels contain NaN.*decoder\.conv_out\.bias"):
        ask(served, {"class": "Bag", "steps": 1})


@settings(max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from([*COLUMNS, "other"]), ANYTHING), max_size=2))
def test_any_row_is_drawn_or_refused(served: ServedModel, rows: list[dict[str, Any]]) -> None:
    try:
        assert len(ask(served, *({"class": "Bag", "steps": 1} | row for row in rows))) == len(rows)
    except MlflowException as refusal:
        assert refusal.get_http_status_code() == 400


def test_steps_that_a_raster_model_cannot_take_are_refused_before_anything_is_drawn(served: ServedModel) -> None:
    served.pipeline = build_pipeline(random_model("causal_raster"), served.pipeline.quantizer)
    assert len(ask(served, {"class": "Bag"})) == 1
    with pytest.raises(MlflowException, match="row 0: steps is 8, but a model with trunk=causal_raster predicts"):
        ask(served, {"class": "Bag", "steps": 8})
