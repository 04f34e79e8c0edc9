"""The environment of this project's programs and of what they start: other programs' variables change nothing in it.

What tools offer to their users stays, such as CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS or HF_HOME.
"""

import getpass
import os
from collections.abc import Mapping

FOREIGN = (  # what programs set for themselves and their own children
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("BASH_ENV", "ENV", "SHELL"),  # dvc runs stages in SHELL
    *("PYTHONINSPECT", "PYTHONOPTIMIZE", "PYTHONWARNINGS"),
    *("MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),  # they change what stages compute
)
FOREIGN_PREFIXES = ("GIT_", "MLFLOW_EXPERIMENT_", "PET_", "TORCHELASTIC_")
REACHING_REMOTES = ("GIT_ASKPASS", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_TERMINAL_PROMPT")
OF_A_STAGE = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_")  # dvc leaves them to its stages as it finds them
MEETING_VARIABLE = "TOKENBRIDGE_MEETING"  # tells workers of one machine the file through which they find each other
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def prepare_environment() -> None:
    """Give this process the environment that ``cleaned`` returns. Every program calls this first."""
    ours = cleaned(os.environ)
    for name in os.environ.keys() - ours.keys():
        del os.environ[name]
    os.environ.update(ours)


def cleaned(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without foreign variables.

    Servers of this machine are reached without a proxy, text is UTF-8 in any locale, and a user id that has no name, as
    in a container, gets one.
    """
    kept = {name: value for name, value in variables.items() if name in REACHING_REMOTES or not _is_foreign(name)}
    direct = f"{kept.get('no_proxy', '')},{kept.get('NO_PROXY', '')}".split(",")
    named = ",".join(dict.fromkeys([*filter(None, map(str.strip, direct)), *THIS_MACHINE]))
    return kept | {"no_proxy": named, "NO_PROXY": named, "PYTHONUTF8": "1"} | _user_name()


def of_a_command(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the cleaned environment of a command that may start dvc, also if a stage of dvc starts the command."""
    return {name: value for name, value in cleaned(variables).items() if not name.startswith(OF_A_STAGE)}


def _is_foreign(name: str) -> bool:
    return name in FOREIGN or name.startswith(FOREIGN_PREFIXES)


def _user_name() -> dict[str, str]:
    """Return a name for a user id that has none: DVC, MLflow and torch ask for it, and fail."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # what it raises depends on the version of Python
        return {"USER": f"uid-{os.getuid()}"}
    return {}
