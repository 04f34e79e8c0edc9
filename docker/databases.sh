#!/bin/sh
# Creates the databases that are missing. PostgreSQL's image runs this when its volume is new, stack.py at every start.
set -eu
for name in "$MLFLOW_DATABASE" "$PREFECT_DATABASE"; do
    found=$(psql --no-psqlrc -U "$POSTGRES_USER" -d postgres -tAc "SELECT 1 FROM pg_database WHERE datname = '$name'")
    [ -n "$found" ] || createdb -U "$POSTGRES_USER" "$name"
done
