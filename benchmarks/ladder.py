"""Ways to write one legacy row, or both sides by hand, with the tools a user would pick instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, bindparam, func, insert, select
from sqlalchemy.dialects.sqlite import insert as insert_if_new
from sqlalchemy.orm import Session

from benchmarks.data import CREATED, MILLISECONDS, PRAGMAS, database, engine_on, filled
from consensus_orm import Phase
from consensus_orm.consensus.models.legacy import ConsensusArtifact
from consensus_orm.consensus.models.normalized import AgentOutput, ConsensusRun

__all__ = [
    "Write",
    "core",
    "core_both",
    "django_orm",
    "laboratory_experiment",
    "launchdarkly_migrator",
    "orm",
    "orm_both",
    "peewee_orm",
    "sqlmodel_orm",
]

Write = Callable[[list[dict[str, Any]]], None]
"""Writes rows in one transaction."""


@contextmanager
def _engine(path: Path) -> Iterator[Engine]:
    engine = engine_on(path)
    yield engine
    engine.dispose()


@contextmanager
def core(path: Path) -> Iterator[Write]:
    """The legacy row with Core, the statement prebuilt."""
    statement = insert(ConsensusArtifact)
    with _engine(database(path)) as engine:

        def write(rows: list[dict[str, Any]]) -> None:
            with engine.begin() as connection:
                connection.execute(statement, [row | {"created_at": CREATED} for row in rows])

        yield write


@contextmanager
def core_both(path: Path) -> Iterator[Write]:
    """Both sides with Core in one transaction, the statements prebuilt, each row compared in type and value."""
    old: Any = ConsensusArtifact.__table__
    run: Any = ConsensusRun.__table__
    new: Any = AgentOutput.__table__
    identity: dict[str, Any] = {name: bindparam(name) for name in ("spec_id", "stage", "run_key")}
    found = select(run.c.id).where(*(run.c[name] == value for name, value in identity.items())).scalar_subquery()
    add_run = insert_if_new(run).on_conflict_do_nothing()
    add_output = insert(new).values(run_id=found, output_timestamp=MILLISECONDS, created_at=CREATED, mirrored=True)
    pairs = [(old.c[name], run.c[name]) for name in ("spec_id", "stage", "run_id")]
    pairs += [(old.c[name], new.c[name]) for name in ("agent_name", "response_text", "created_at")]
    pairs.append((old.c.content_json, new.c.content))
    alike = [each for a, b in pairs for each in (func.typeof(a) == func.typeof(b), a.is_(b))]
    compare = select(func.count()).select_from(new.join(run).join(old, old.c.id == new.c.id))
    compare = compare.where(new.c.id == bindparam("key"), *alike)
    with _engine(filled(path, Phase.EXPAND, 0)) as engine:

        def write(rows: list[dict[str, Any]]) -> None:
            with engine.begin() as connection:
                for row in rows:
                    given = {name: row[name] for name in ("spec_id", "stage")} | {"run_key": f"run:{row['run_id']}"}
                    of_run = {"run_id": row["run_id"], "run_timestamp": MILLISECONDS, "consensus_ok": True}
                    added = connection.execute(insert(old), row | {"created_at": CREATED})
                    (key,) = added.inserted_primary_key or (None,)
                    connection.execute(add_run, given | of_run | {"degraded": False})
                    of_output = {"id": key, "agent_name": row["agent_name"], "content": row["content_json"]}
                    connection.execute(add_output, given | of_output)
                    if connection.scalar(compare, {"key": key}) != 1:
                        raise AssertionError("the sides differ")

        yield write


def _add_legacy(session: Session, row: dict[str, Any]) -> None:
    session.add(ConsensusArtifact(**row, created_at=CREATED))


def _add_normalized(session: Session, row: dict[str, Any]) -> None:
    identity = {"spec_id": row["spec_id"], "stage": row["stage"], "run_key": f"run:{row['run_id']}"}
    run = session.scalar(select(ConsensusRun).filter_by(**identity))
    if run is None:
        run = ConsensusRun(**identity, run_id=row["run_id"], run_timestamp=MILLISECONDS, consensus_ok=True)
        session.add(run)
        session.flush()
    session.add(
        AgentOutput(
            run_id=run.id,
            agent_name=row["agent_name"],
            content=row["content_json"],
            output_timestamp=MILLISECONDS,
            created_at=CREATED,
            mirrored=True,
        )
    )


def _in_session(engine: Engine, *adders: Callable[[Session, dict[str, Any]], None]) -> Write:
    def write(rows: list[dict[str, Any]]) -> None:
        with Session(engine) as session:
            for row in rows:
                for add in adders:
                    add(session, row)
            session.commit()

    return write


@contextmanager
def orm(path: Path) -> Iterator[Write]:
    """The legacy row with the ORM: what an application does that does not migrate at all."""
    with _engine(database(path)) as engine:
        yield _in_session(engine, _add_legacy)


@contextmanager
def orm_both(path: Path) -> Iterator[Write]:
    """Both sides with the ORM, by hand, in one transaction."""
    with _engine(filled(path, Phase.EXPAND, 0)) as engine:
        yield _in_session(engine, _add_legacy, _add_normalized)


@contextmanager
def laboratory_experiment(path: Path) -> Iterator[Write]:
    """Both sides with laboratory: the legacy ORM write is the control, the normalized one the candidate."""
    import laboratory

    with _engine(filled(path, Phase.EXPAND, 0)) as engine:
        legacy, normalized = _in_session(engine, _add_legacy), _in_session(engine, _add_normalized)

        def write(rows: list[dict[str, Any]]) -> None:
            experiment = laboratory.Experiment(raise_on_mismatch=True)
            experiment.control(legacy, args=[rows])
            experiment.candidate(normalized, args=[rows])
            experiment.conduct()

        yield write


@contextmanager
def launchdarkly_migrator(path: Path) -> Iterator[Write]:
    """Both sides with LaunchDarkly's migrator, offline, in its stage dualwrite."""
    import ldclient
    from ldclient.integrations.test_data import TestData
    from ldclient.migrations import MigratorBuilder, Stage

    source = TestData.data_source()
    source.update(source.flag("move").variations("dualwrite").variation_for_all(0))
    config = ldclient.Config("offline", update_processor_class=source, send_events=False)
    with _engine(filled(path, Phase.EXPAND, 0)) as engine, ldclient.LDClient(config, start_wait=5) as client:
        legacy, normalized = _in_session(engine, _add_legacy), _in_session(engine, _add_normalized)

        def success(write: Write) -> Callable[[Any], Any]:
            def succeed(rows: Any) -> Any:
                write(rows)
                return ldclient.Result.success(len(rows))

            return succeed

        built = MigratorBuilder(client).write(success(legacy), success(normalized))
        migrator = built.read(lambda _: ldclient.Result.success(1), lambda _: ldclient.Result.success(1)).build()
        assert not isinstance(migrator, str), migrator
        context = ldclient.Context.create("benchmark")

        def write(rows: list[dict[str, Any]]) -> None:
            result = migrator.write("move", context, Stage.DUALWRITE, rows)
            assert result.authoritative.is_success(), result.authoritative.error
            assert result.nonauthoritative is not None

        yield write


@contextmanager
def peewee_orm(path: Path) -> Iterator[Write]:
    """The legacy row with peewee."""
    import peewee

    pragmas = dict(pragma.split(" = ") for pragma in PRAGMAS)
    file = peewee.SqliteDatabase(str(database(path)), pragmas=pragmas)

    class Artifact(peewee.Model):
        spec_id = peewee.TextField()
        stage = peewee.TextField()
        agent_name = peewee.TextField()
        content_json = peewee.TextField()
        response_text = peewee.TextField(null=True)
        run_id = peewee.TextField(null=True)
        created_at = peewee.TextField(null=True)

        class Meta:
            database = file
            table_name = "consensus_artifacts"

    def write(rows: list[dict[str, Any]]) -> None:
        with file.atomic():
            if len(rows) == 1:
                Artifact.create(**rows[0], created_at=CREATED)
            else:
                for start in range(0, len(rows), 100):
                    Artifact.insert_many([r | {"created_at": CREATED} for r in rows[start : start + 100]]).execute()

    yield write
    file.close()


@contextmanager
def django_orm(path: Path) -> Iterator[Write]:
    """The legacy row with Django's ORM."""
    import django
    from django.conf import settings
    from django.db import connections, models, transaction

    if not settings.configured:
        settings.configure(DATABASES={}, INSTALLED_APPS=[], USE_TZ=True)
        django.setup()
    init = ";".join(f"PRAGMA {pragma}" for pragma in PRAGMAS)
    name = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(database(path)), "OPTIONS": {"init_command": init}}
    connections.databases[path.stem] = connections.configure_settings({"default": name})["default"]

    fields = {
        field: models.TextField(null=field in {"response_text", "run_id", "created_at"})
        for field in ("spec_id", "stage", "agent_name", "content_json", "response_text", "run_id", "created_at")
    }
    meta = type("Meta", (), {"app_label": path.stem, "db_table": "consensus_artifacts"})
    artifact: Any = type("Artifact", (models.Model,), {**fields, "Meta": meta, "__module__": __name__})
    rows_of = artifact.objects.using(path.stem)

    def write(rows: list[dict[str, Any]]) -> None:
        with transaction.atomic(using=path.stem):
            if len(rows) == 1:
                rows_of.create(**rows[0], created_at=CREATED)
            else:
                rows_of.bulk_create([artifact(**row, created_at=CREATED) for row in rows])

    yield write
    connections[path.stem].close()


@contextmanager
def sqlmodel_orm(path: Path) -> Iterator[Write]:
    """The legacy row with SQLModel."""
    import sqlmodel

    from benchmarks.sqlmodel_artifact import Artifact

    with _engine(database(path)) as engine:

        def write(rows: list[dict[str, Any]]) -> None:
            with sqlmodel.Session(engine) as session:
                session.add_all([Artifact(**row, created_at=CREATED) for row in rows])
                session.commit()

        yield write
