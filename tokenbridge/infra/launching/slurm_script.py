"""The batch script of a job on Slurm, and sbatch's options for it."""

import shlex
from string import Template

from tokenbridge.config.launcher import SlurmConfig
from tokenbridge.infra.launching.failure import NOTES
from tokenbridge.infra.launching.work import ParallelWork

SCRIPT = Template(r"""#!/bin/bash
# sbatch $options
$exports
$setup
rm -f $notes
export SRUN_CPUS_PER_TASK="$$SLURM_CPUS_PER_TASK"  # which srun does not take from sbatch

# Slurm warns this shell before it takes the nodes away; the workers then save a checkpoint and end.
# The signal is repeated, because a worker that is starting misses it.
warn() { while scancel --signal=USR2 "$$SLURM_JOB_ID"; do sleep 10; done; }
trap 'trap "" USR2; echo "Slurm takes the nodes away soon: saving a checkpoint"; warn & warner=$$!' USR2

# the port depends on the job, so that jobs can share a node
head=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | head -n 1)
meeting=(--rdzv-backend=c10d --rdzv-id="$$SLURM_JOB_ID-$${SLURM_RESTART_COUNT:-0}"
    --rdzv-endpoint="$$head:$$((20000 + SLURM_JOB_ID % 20000))")
# the agents ignore USR2, which is not meant for them
srun --kill-on-bad-exit=1 --export=ALL bash -c 'trap "" USR2; exec "$$@"' agent \
    $torchrun &
step=$$!
wait $$step
while kill -0 $$step 2>/dev/null; do wait $$step; done  # a signal ends `wait`, not the step
wait $$step; code=$$?
[ -z "$${warner:-}" ] || kill "$$warner" 2>/dev/null

if $requeue && [ $$code = 0 ] && [ ! -e $complete ] && [ ! -e $failed ]; then
    echo "Requeued: the job goes on from its checkpoint"
    scontrol requeue "$$SLURM_JOB_ID"
fi
exit $$code
""")


def sbatch_options(work: ParallelWork, slurm: SlurmConfig) -> list[str]:
    """Return the options for the command line, where they override SBATCH_ variables."""
    chosen = {
        "partition": slurm.partition,
        "account": slurm.account,
        "gpus-per-node": slurm.gpus_per_node or None,
        "mem": slurm.memory,
    }
    return [
        f"--job-name={work.name}",
        f"--chdir={work.root}",
        f"--output={work.log('%j')}",
        *("--open-mode=append", "--export=ALL", "--ntasks-per-node=1"),
        f"--nodes={work.launcher.nodes}",
        f"--cpus-per-task={slurm.cpus_per_task}",
        f"--time={slurm.time}",
        f"--signal=B:USR2@{slurm.signal_seconds}",
        "--requeue" if slurm.requeue else "--no-requeue",
        *(f"--{name}={value}" for name, value in chosen.items() if value is not None),
        *slurm.options,
    ]


def render(work: ParallelWork, slurm: SlurmConfig) -> str:
    """Return the script for sbatch."""
    between = "@MEETING@"  # placeholder for the rendezvous options, which are known only inside the job
    environment = work.environment(slurm.cpus_per_task)
    return SCRIPT.substitute(
        options=shlex.join(sbatch_options(work, slurm)),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
        setup="\n".join(slurm.setup),
        notes=f"{shlex.quote(str(work.folder))}/{NOTES}",
        torchrun=shlex.join(work.torchrun(between)).replace(between, '"${meeting[@]}"'),
        requeue="true" if slurm.requeue else "false",
        complete=shlex.quote(str(work.complete)),
        failed=shlex.quote(str(work.failed)),
    )
