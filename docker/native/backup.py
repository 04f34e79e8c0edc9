"""Backup of the stack's databases and buckets to a folder of files, and restore."""

from importlib.metadata import version
from pathlib import Path

from s3fs import S3FileSystem  # type: ignore[import-untyped]

from native import postgres
from native.settings import LOOPBACK, Settings
from native.team import HEALTHY, Team
from tokenbridge.base.at_end import at_end
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import new_folder, read_json, sha256_tree, write_json

DATABASES = ("MLFLOW_DATABASE", "PREFECT_DATABASE")
BUCKETS = ("MLFLOW_BUCKET", "DVC_BUCKET", "DATA_BUCKET")
STORES = ("postgres", "seaweedfs")  # the services that keep data
RECORD = "backup.json"
TABLES = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"


def save(team: Team, folder: Path) -> None:
    """Write ``folder``: postgres/NAME.dump, s3/BUCKET/..., and backup.json with their digest.

    The services may be in use. Databases go first: MLflow stores an artifact before a row names it, so all artifacts
    that the dumped rows name are in the buckets by then, unless someone deletes meanwhile.

    Raises:
        UserError: if ``folder`` exists, a store does not run, or an object changed meanwhile.
    """
    for name in STORES:
        if team.state(name) != HEALTHY:
            raise UserError(f"{name} is not healthy, and a backup needs it: make stack first")
    with new_folder(folder) as target:
        target.mkdir(mode=0o700)  # the data are for their owner only
        (target / "postgres").mkdir()
        for name in DATABASES:
            dump = target / "postgres" / f"{team.settings[name]}.dump"
            postgres.run(team.settings, "pg_dump", "--format=custom", f"--file={dump}", team.settings[name])
        for name in BUCKETS:
            fetch_bucket(filesystem(team.settings), team.settings[name], target / "s3" / team.settings[name])
        made_by = {name: version(name) for name in ("mlflow", "prefect")}
        write_json(target / RECORD, {"versions": made_by, "sha256": digest(target)})
    print(f"backup: done, {folder}")


def restore(team: Team, folder: Path) -> None:
    """Fill an empty stack with what ``save`` wrote. The stack is down before and afterwards.

    Raises:
        UserError: if ``folder`` is not as it was written, the stack runs, or it is not empty.
    """
    if not (folder / RECORD).exists() or read_json(folder / RECORD)["sha256"] != digest(folder):
        raise UserError(f"{folder} is not a whole backup: {RECORD} is missing, or its digest differs")
    team.require_down()
    with at_end(team.down):
        team.up(STORES)
        for name in DATABASES:
            fill_database(team.settings, team.settings[name], folder / "postgres" / f"{team.settings[name]}.dump")
        for name in BUCKETS:
            fill_bucket(filesystem(team.settings), team.settings[name], folder / "s3" / team.settings[name])
    print(f"restore: done, {folder}")


def digest(folder: Path) -> dict[str, str]:
    return {name: sha256_tree(folder / name) for name in ("postgres", "s3")}


def filesystem(settings: Settings) -> S3FileSystem:
    return S3FileSystem(
        key=settings["S3_ACCESS_KEY"],
        secret=settings["S3_SECRET_KEY"],
        endpoint_url=f"http://{LOOPBACK}:{settings['S3_PORT']}",
        client_kwargs={"region_name": settings["S3_REGION"]},
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def fetch_bucket(files: S3FileSystem, bucket: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    sizes = {key: entry["size"] for key, entry in files.find(bucket, detail=True).items()}
    local = {key: folder.parent / key for key in sizes}
    files.get(list(local), [str(path) for path in local.values()])
    short = [key for key, path in local.items() if path.stat().st_size != sizes[key]]
    if short:
        raise UserError(f"{short[0]} changed while it was fetched: back up again")


def fill_bucket(files: S3FileSystem, bucket: str, folder: Path) -> None:
    if files.find(bucket):
        raise UserError(f"the bucket {bucket} is not empty: only an empty stack is filled (stack.py down --wipe)")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files.put([str(path) for path in paths], [f"{bucket}/{path.relative_to(folder).as_posix()}" for path in paths])


def fill_database(settings: Settings, database: str, dump: Path) -> None:
    if postgres.run(settings, "psql", "--no-psqlrc", "-d", database, "-tAc", TABLES).strip() != "0":
        raise UserError(f"the database {database} is not empty: only an empty stack is filled (stack.py down --wipe)")
    postgres.run(settings, "pg_restore", "--single-transaction", "--no-owner", f"--dbname={database}", str(dump))
