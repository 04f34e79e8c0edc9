"""Quick imports leave out what is not used, and everything works as without them."""

import subprocess
import sys

import pytest

from tests.support.checkout import CHECKOUT

USED_LATER = """
import sys
from tokenbridge.stages import import_stage
import_stage("encode")
before = "scipy.stats" in sys.modules
from diffusers import DPMSolverMultistepScheduler
scheduler = DPMSolverMultistepScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(2)
print(before, bool(scheduler.sigmas[0] > scheduler.sigmas[1]))"""
USED_AT_ONCE = """
from tokenbridge.base.imports import quick_imports
with quick_imports():
    from scipy.stats import norm
print(float(norm.cdf(0.0)))"""
OTHER_TABLE = """
import importlib.metadata
from tokenbridge.base.imports import quick_imports
with quick_imports():
    pass
print('PIL' in importlib.metadata.packages_distributions())"""


@pytest.mark.parametrize(
    ("code", "printed"),
    [(USED_LATER, "False True"), (USED_AT_ONCE, "0.5"), (OTHER_TABLE, "True")],
    ids=["imported when used later", "imported when used at once", "packages are found afterwards"],
)
def test_what_the_imports_leave_out_works_when_it_is_used(code: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == printed
