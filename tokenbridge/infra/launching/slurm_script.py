"""The batch script of a job on Slurm, and sbatch's options for it."""

import shlex
from string import Template

from tokenbridge.config.launcher import SlurmConfig
from tokenbridge.infra.launching.failure import NOTES
from tokenbridge.infra.launching.work import ParallelWork

# The rendezvous port on the first node depends on the job, so that jobs can share a node.
FIRST_PORT, PORTS = 20_000, 20_000
WARN_SECONDS = 10  # between repeats of the signal, because a worker that is starting misses it

SCRIPT = Template(r"""#!/bin/bash
# sbatch $options
$exports
$setup
rm -f $notes
export SRUN_CPUS_PER_TASK="$$SLURM_CPUS_PER_TASK"  # which srun does not take from sbatch

# Slurm warns this shell before it takes the nodes away; the workers then save a checkpoint and end.
warn() { while scancel --signal=USR2 "$$SLURM_JOB_ID"; do sleep $warn_seconds; done; }
trap 'trap "" USR2; echo "Slurm takes the nodes away soon: saving a checkpoint"; warn & warner=$$!' USR2

head=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | head -n 1)
meeting=(--rdzv-backend=c10d --rdzv-id="$$SLURM_JOB_ID-$${SLURM_RESTART_COUNT:-0}"
    --rdzv-endpoint="$$head:$$(($first_port + SLURM_JOB_ID % $ports))")
# the agents ignore USR2, which is not meant for them
srun --kill-on-bad-exit=1 --export=ALL bash -c 'trap "" USR2; exec "$$@"' agent \
    $torchrun &
step=$$!
wait $$step
while kill -0 $$step 2>/dev/null; do wait $$step; done  # a signal ends `wait`, not the step
wait $$step; code=$$?
[ -z "$${warner:-}" ] || kill "$$warner" 2>/dev/null
$requeue
exit $$code
""")
REQUEUE = """
if [ $code = 0 ] && [ ! -e {complete} ] && [ ! -e {failed} ]; then
    echo "Requeued: the job goes on from its checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
fi"""


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
    files = {"complete": shlex.quote(str(work.complete)), "failed": shlex.quote(str(work.failed))}
    return SCRIPT.substitute(
        options=shlex.join(sbatch_options(work, slurm)),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
        setup="\n".join(slurm.setup),
        notes=f"{shlex.quote(str(work.folder))}/{NOTES}",
        warn_seconds=WARN_SECONDS,
        first_port=FIRST_PORT,
        ports=PORTS,
        torchrun=shlex.join(work.torchrun(between)).replace(between, '"${meeting[@]}"'),
        requeue=REQUEUE.format(**files) if slurm.requeue else "",
    )
