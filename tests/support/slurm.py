"""A real Slurm of two nodes on this machine, in a network of its own that reaches nothing else."""

import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.support.patience import PATIENCE
from tests.support.programs import require, require_rights

NODES = ("n1", "n2")
CONTROLLER_PORT, NODE_PORT = 16_817, 16_820  # free for sure: the network is our own
SLURM_CONF = """
ClusterName=tests
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SrunPortRange=16900-16999
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""


@dataclass
class SlurmCluster:
    """Two nodes; partition `main`, which is the default, and `high`, whose jobs preempt those of `main`.

    Commands run inside the cluster's network, as on its login node; the file system is this machine's.
    """

    folder: Path
    keeper: subprocess.Popen[bytes] = field(init=False)  # its life is the network's

    @property
    def environment(self) -> dict[str, str]:
        """The variables that commands need beyond this process's."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}

    @property
    def inside(self) -> list[str]:
        """The command that runs another one in the cluster's network and this process's folder."""
        return ["nsenter", f"--target={self.keeper.pid}", "--net", "--mount", "--wd=."]

    def start(self, *command: str) -> subprocess.Popen[str]:
        """The process of a command in the cluster's network; it is the command itself, so it may be killed."""
        return subprocess.Popen(
            [*self.inside, *command],
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str) -> str:
        """Output of a command that must succeed."""
        process = self.start(*command)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output
        return output.strip()

    def from_outside(self) -> dict[str, str]:
        """What makes a process outside of the cluster's network a login node: Slurm's commands, which go inside."""
        commands = self.folder / "commands"
        commands.mkdir(exist_ok=True)
        for name in ("sbatch", "squeue", "scontrol", "scancel"):
            script = commands / name
            script.write_text(f'#!/bin/sh\nexec {shlex.join(self.inside)} {shutil.which(name)} "$@"\n')
            script.chmod(0o755)
        return self.environment | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}

    def job_state(self, job: str) -> str:
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def processes(self) -> list[psutil.Process]:
        """Everything that runs in the cluster's network but the cluster itself."""
        own = ("sleep", "slurmctld", "slurmd", "slurmscriptd")
        return [each for each in self._all_processes() if each.info["name"] not in own]

    def _all_processes(self) -> list[psutil.Process]:
        network = _namespace(self.keeper.pid)
        return [each for each in psutil.process_iter(["name"]) if _namespace(each.pid) == network]

    def up(self) -> None:
        """Start the daemons, and wait until both nodes are idle."""
        for name in ("state", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        host = socket.gethostname().split(".")[0]
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(NODES)}\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # no cgroup file system is looked for
        (self.folder / "slurm.conf").write_text(self._configuration(host))
        # with 127.0.0.1 alone, Slurm finds no name; torch listens everywhere, so there is no network but lo
        inside = f"ip link set lo up && ip addr add 127.0.0.2/8 dev lo && mount --bind {self.folder}/hosts /etc/hosts"
        self.keeper = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", f"{inside} && touch {self.folder}/ready && exec sleep 86400"]
        )
        self._wait_until((self.folder / "ready").exists)
        self.run("slurmctld", "-f", str(self.folder / "slurm.conf"))
        for node in NODES:
            self.run("slurmd", "-f", str(self.folder / "slurm.conf"), "-N", node)
        self._wait_until(lambda: self.run("sinfo", "-hN", "--partition=main", "--format=%T").split() == ["idle"] * 2)

    def down(self) -> None:
        """End everything: the jobs, then the daemons, then whatever is left in the network."""
        if self.keeper.poll() is None:
            with suppress(AssertionError):
                self.run("scancel", "--full", "--signal=KILL", "--user=root")
            left = self._all_processes()
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, PATIENCE)
        self.keeper.wait(PATIENCE)

    def _configuration(self, host: str) -> str:
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={NODE_PORT + index} CPUs=4 RealMemory=4000"
            for index, node in enumerate(NODES)
        ]
        return SLURM_CONF.format(
            first_job=int(time.time()) % 10_000_000,  # never one of an earlier cluster
            host=host,
            controller_port=CONTROLLER_PORT,
            folder=self.folder,
            nodes="\n".join(nodes),
        )

    def _wait_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline or self.keeper.poll() is not None:
                logs = [path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log"))]
                raise RuntimeError("Slurm did not start:\n" + "\n".join(logs))
            time.sleep(0.1)


def _namespace(process: int) -> str | None:
    """The id of a process's network."""
    try:
        return str(Path(f"/proc/{process}/ns/net").readlink())
    except OSError:
        return None


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Tests may leave jobs; they are ended with the cluster."""
    require("slurmctld")
    require("ip")
    require_rights()
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
