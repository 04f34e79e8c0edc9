"""What classes of settings are made of: types with their ranges, and errors that name every wrong setting at once.

A class of settings inherits ``Settings``, which makes it a pydantic dataclass. The types of its fields check each value
alone, and its ``__post_init__`` checks what must hold between fields.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, dataclass_transform, get_args

from PIL import ImageColor
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, PydanticCustomError

from tokenbridge.base.checks import ConfigError
from tokenbridge.base.names import normalized

FORM = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SHARED_RECIPE = re.compile(r"models\.[^.]+\.(?=train\.)")  # conf/ copies `train` into every model


def _checked(valid: Callable[[Any], object], rule: str) -> Callable[[Any], Any]:
    """Return a validator that takes the values that are ``valid``, and says of any other what it should be."""

    def check(value: Any) -> Any:
        if not valid(value):
            raise PydanticCustomError("rule", f"Input should be {rule}")
        return value

    return check


def _is_opaque(colour: str) -> bool:
    try:
        return len(ImageColor.getrgb(colour)) == 3
    except ValueError:
        return False


NAME_RULE = "letters, digits, '.', '_' or '-', with no sign at the start"
Name = Annotated[str, AfterValidator(_checked(NAME.fullmatch, NAME_RULE))]  # part of a path or of a shell command
Line = Annotated[str, AfterValidator(_checked(str.isprintable, "one line of printable characters"))]
ClassName = Annotated[str, AfterValidator(normalized)]
Colour = Annotated[str, AfterValidator(_checked(_is_opaque, "an opaque colour, such as white or '#ffffff'"))]

NO_TRUTH_VALUE = BeforeValidator(_checked(lambda value: not isinstance(value, bool), "a number"))
Integer = Annotated[int, NO_TRUTH_VALUE, Field(ge=-(2**63), le=2**63 - 1)]  # as files and tensors hold
Positive = Annotated[Integer, Field(gt=0)]
Count = Annotated[Integer, Field(ge=0)]

Number = Annotated[float, NO_TRUTH_VALUE]
Amount = Annotated[Number, Field(ge=0)]
PositiveNumber = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
PartialShare = Annotated[Number, Field(ge=0, le=0.9)]

Optimizer = Literal["adamw", "muon"]  # muon: Muon for matrices and kernels, AdamW for the rest


@dataclass_transform(field_specifiers=(Field,))
class _Form(type):
    """The metaclass of settings, whose constructors raise ``ConfigError``."""

    def __call__(cls, *values: Any, **named: Any) -> Any:
        try:
            return super().__call__(*values, **named)
        except ValidationError as error:
            raise ConfigError(_explain(cls, error)) from error


class Settings(metaclass=_Form):
    """The base of all classes of settings, each a pydantic dataclass with the options of its class statement.

    Raises:
        ConfigError: with one line for each mistake.
    """

    def __init_subclass__(cls, **options: bool) -> None:
        super().__init_subclass__()
        dataclass(cls, config=FORM, **options)  # type: ignore[call-overload]


def refuse(mistakes: Mapping[str, bool]) -> None:
    """Raise ``ConfigError`` with each message whose mistake was made. A message begins with the name of a field."""
    made = [message for message, wrong in mistakes.items() if wrong]
    if made:
        raise ConfigError("\n".join(made))


def did_you_mean(settings: Any, path: Sequence[int | str]) -> str:
    """Return a question with the setting of the class ``settings`` that is nearest to an unknown one, or nothing."""
    for key in path[:-1]:  # the names of models and the positions in lists are no fields
        annotation = getattr(settings.__pydantic_fields__.get(key), "annotation", None)
        parts = (annotation, *get_args(annotation))
        settings = next((part for part in parts if hasattr(part, "__pydantic_fields__")), settings)
    near = get_close_matches(str(path[-1]), settings.__pydantic_fields__, 1)
    return f": did you mean {near[0]}?" if near else ""


def _explain(settings: type, error: ValidationError) -> str:
    """Return one line for each mistake. A mistake in ``train`` is not repeated for each model."""
    lines = [line for fault in error.errors(include_url=False) for line in _lines(settings, fault)]
    return "\n".join(line for line in lines if (shared := SHARED_RECIPE.sub("", line)) == line or shared not in lines)


def _lines(settings: type, fault: ErrorDetails) -> list[str]:
    path = ".".join(map(str, fault["loc"]))
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # raised by `refuse`
        return [f"{path}.{line}".lstrip(".") for line in str(cause).splitlines()]
    if isinstance(cause, ValueError):
        return [f"{path or 'the settings'}: {cause}"]
    if fault["type"] == "unexpected_keyword_argument":
        return [f"{path} is no setting{did_you_mean(settings, fault['loc'])}"]
    if fault["type"] == "missing":
        return [f"{path} is missing: set it in conf/ and run `tokenbridge params`"]
    advice = re.sub("^.*? should ", "must ", fault["msg"]).replace(" after validation", "")
    return [f"{path} is {fault['input']!r:.200}: {advice}"]
