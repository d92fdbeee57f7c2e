"""A store whose creation was interrupted is created again; a store with runs is never deleted."""

from __future__ import annotations

import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from bitrank.errors import UserError
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.sqlite_store import has_store, migrate
from bitrank.tracking.store import open_store


@pytest.fixture(scope="module")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bytes of a new store, all in one file."""
    folder = tmp_path_factory.mktemp("new_store")
    open_store(str(folder))
    path = folder / "mlflow.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    alone = folder / "alone.db"
    shutil.copyfile(path, alone)
    return alone


def test_creating_a_store_leaves_no_other_file(tmp_path: Path) -> None:
    open_store(str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()} - {"mlflow.db-wal", "mlflow.db-shm"}
    assert names == {"mlflow.db", "mlflow.lock"}
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("share", [0.0, 1e-5, 1e-4, 0.02, 0.1, 0.3, 0.5, 0.8, 0.97])
def test_a_truncated_store_does_not_exist(new_store: Path, share: float, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    content = new_store.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert not has_store(path)
    shutil.copyfile(new_store, path)
    assert has_store(path)


def test_a_store_with_only_the_first_tables_does_not_exist(new_store: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(new_store)) as whole:
        statements = [
            sql
            for (sql,) in whole.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
        ]
    for count in (1, 2, 5, len(statements) // 2, len(statements)):  # alembic's version is written last
        path = tmp_path / f"{count}.db"
        with closing(sqlite3.connect(path)) as database:
            for sql in statements[:count]:
                if "sqlite_" not in sql:
                    database.execute(sql)
        assert not has_store(path), count


@pytest.mark.parametrize("share", [1e-4, 0.5])
def test_an_incomplete_store_is_created_again_and_kept(new_store: Path, share: float, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    content = new_store.read_bytes()
    truncated = content[: int(len(content) * share)]
    path.write_bytes(truncated)
    path.with_name("mlflow.db-journal").write_bytes(b"a journal of the incomplete one")
    path.with_name(".mlflow.db.4711.new").write_bytes(b"of a process that was killed")
    Tracker(open_store(str(tmp_path)), str(tmp_path), "smoke")
    assert has_store(path)
    assert path.with_name("mlflow.db.incomplete").read_bytes() == truncated
    assert not list(tmp_path.glob(".mlflow.db.*")) and not path.with_name("mlflow.db-journal").exists()


@pytest.mark.parametrize("share", [0.001, 0.5])
def test_a_truncated_store_with_files_of_runs_is_rejected(
    new_store: Path, share: float, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    content = new_store.read_bytes()[: int(new_store.stat().st_size * share)]
    path.write_bytes(content)
    (tmp_path / "artifacts" / "bitrank-smoke").mkdir(parents=True)
    with pytest.raises(UserError, match="restore a backup"):
        open_store(str(tmp_path))
    assert path.read_bytes() == content


def test_a_store_of_an_older_mlflow_is_migrated_after_a_backup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = open_store(str(tmp_path))
    run = client.create_run(client.create_experiment("bitrank-smoke"))
    client.log_metric(run.info.run_id, "eval/acc", 0.75)
    older = _downgrade(tmp_path / "mlflow.db")
    again = open_store(str(tmp_path))
    assert again.get_run(run.info.run_id).data.metrics == {"eval/acc": 0.75}
    assert "migrating it, with a backup" in capsys.readouterr().err
    with closing(sqlite3.connect(tmp_path / f"mlflow.db.schema-{older}")) as kept:
        assert kept.execute("SELECT version_num FROM alembic_version").fetchone() == (older,)
        assert kept.execute("SELECT value FROM metrics").fetchall() == [(0.75,)]


def _downgrade(path: Path) -> str:
    """Bring the store back to the schema of the revision before the newest, by MLflow's own migrations."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine

    uri = f"sqlite:///{path}"
    config = _get_alembic_config(uri)
    script = ScriptDirectory.from_config(config)
    newest = script.get_revision(script.get_current_head())
    older = str(newest.down_revision)
    engine = create_sqlalchemy_engine(uri)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, older)
    engine.dispose()
    return older


def test_a_store_of_a_newer_mlflow_is_rejected_with_advice(tmp_path: Path) -> None:
    open_store(str(tmp_path))
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffff12345678'")
        database.commit()
    with pytest.raises(UserError, match=r"written by another MLflow .* install a newer MLflow"):
        open_store(str(tmp_path))


def test_a_failed_migration_does_not_change_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(str(tmp_path))
    older = _downgrade(tmp_path / "mlflow.db")

    def break_off(uri: str) -> None:
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
            database.execute("DROP TABLE metrics")
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("bitrank.tracking.sqlite_store._upgrade", break_off)
    with pytest.raises(UserError, match="cannot be migrated: the disk is full; it is unchanged"):
        open_store(str(tmp_path))
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchone() == (older,)
        assert database.execute("SELECT count(*) FROM metrics").fetchone() == (0,)


def _with_runs(folder: Path, count: int) -> str:
    """Make a store of the schema before the newest with ``count`` runs; returns its revision."""
    client = open_store(str(folder))
    experiment = client.create_experiment("bitrank-smoke")
    for _ in range(count):
        client.create_run(experiment)
    return _downgrade(folder / "mlflow.db")


@contextmanager
def _file_size_limit() -> Iterator[Callable[[], None]]:
    """Yield a function from whose call on no file may grow above 200 kB, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _count_runs(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM runs").fetchone()[0])


def test_a_store_whose_backup_cannot_be_written_keeps_its_runs(tmp_path: Path) -> None:
    older = _with_runs(tmp_path, 3)
    with (
        _file_size_limit() as start,
        pytest.raises(UserError, match=r"backup before the migration cannot be .*; it is unchanged; make"),
    ):
        start()
        migrate(tmp_path / "mlflow.db", f"sqlite:///{tmp_path}/mlflow.db")
    assert _count_runs(tmp_path / "mlflow.db") == 3
    assert not list(tmp_path.glob(f"*schema-{older}*")) and not list(tmp_path.glob(".*"))


def test_a_store_that_cannot_be_put_back_is_not_called_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = _with_runs(tmp_path, 2)
    path = tmp_path / "mlflow.db"
    with _file_size_limit() as start:

        def break_off(uri: str) -> None:
            with closing(sqlite3.connect(path)) as database:
                database.execute("DELETE FROM runs")
                database.commit()
            start()
            raise sqlite3.OperationalError("no such column")

        monkeypatch.setattr("bitrank.tracking.sqlite_store._upgrade", break_off)
        with pytest.raises(UserError) as error:
            migrate(path, f"sqlite:///{path}")
    backup = tmp_path / f"mlflow.db.schema-{older}"
    assert "unchanged" not in str(error.value) and f"the runs are in {backup}" in str(error.value)
    assert _count_runs(backup) == 2
    monkeypatch.setattr("bitrank.tracking.sqlite_store._upgrade", lambda uri: None)
    migrate(path, f"sqlite:///{path}")
    assert _count_runs(backup) == 2, "a later backup has another name"


@pytest.mark.parametrize("cause", [sqlite3.OperationalError("no such column"), KeyboardInterrupt()])
def test_a_migration_that_breaks_off_restores_the_runs_and_leaves_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: BaseException
) -> None:
    _with_runs(tmp_path, 2)

    def break_off(uri: str) -> None:
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
            database.execute("DELETE FROM runs")
            database.commit()
        raise cause

    monkeypatch.setattr("bitrank.tracking.sqlite_store._upgrade", break_off)
    with pytest.raises((UserError, KeyboardInterrupt)):
        migrate(tmp_path / "mlflow.db", f"sqlite:///{tmp_path}/mlflow.db")
    assert _count_runs(tmp_path / "mlflow.db") == 2
    assert not list(tmp_path.glob("*schema*"))


def test_an_experiment_that_another_process_creates_at_the_same_time_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path / "runs")
    first = Tracker(open_store(store), store, "smoke")
    client = open_store(store)
    look, looks = client.get_experiment_by_name, []

    def late(name: str) -> object:
        looks.append(name)
        return None if len(looks) == 1 else look(name)

    monkeypatch.setattr(client, "get_experiment_by_name", late)
    assert Tracker(client, store, "smoke").experiment_id == first.experiment_id
    assert len(looks) > 1
