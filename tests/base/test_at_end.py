"""A failure is reported once, as what came first."""

from unittest.mock import Mock

import pytest

from tokenbridge.base.at_end import at_end


@pytest.mark.parametrize("cause", [ValueError("the cause"), KeyboardInterrupt("the cause")])
def test_the_first_error_is_raised_and_the_second_becomes_its_note(cause: BaseException) -> None:
    with pytest.raises(type(cause), match="the cause") as caught, at_end(Mock(side_effect=OSError("the disk is gone"))):
        raise cause
    assert caught.value.__notes__ == ["Afterwards there was another error: OSError: the disk is gone"]


def test_the_action_is_done_once_and_its_own_error_is_raised() -> None:
    action = Mock()
    with at_end(action):
        action.assert_not_called()
    action.assert_called_once_with()
    with pytest.raises(OSError, match="gone"), at_end(Mock(side_effect=OSError("gone"))):
        pass
