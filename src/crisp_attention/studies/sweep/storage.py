"""The Optuna storage of a study, and the lock under which its queue changes."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from crisp_attention.errors import OptionError, first_line

HEARTBEAT_SECONDS = 20
GRACE_SECONDS = 120
DATABASE = "study.db"


class Storage:
    """A database that several processes, and machines, share.

    Optuna itself lets two processes take the same waiting trial from SQLite, and lets two machines plan
    one study twice; so whatever reads the queue and then changes it does so inside `locked()`.
    """

    def __init__(self, url: str | None, folder: Path, *, grace: int = GRACE_SECONDS) -> None:
        """Open it. Raises OptionError if that fails.

        url: an RDB URL, None for a SQLite file in `folder`.
        grace: seconds without a heartbeat after which a worker counts as dead.
        """
        self.url = _url(url) if url else URL.create("sqlite", database=str((folder / DATABASE).absolute()))
        self._dialect = self.url.get_backend_name()
        waiting = {"connect_args": {"timeout": 60}} if self._dialect == "sqlite" else {"pool_pre_ping": True}
        try:
            self._engine = sqlalchemy.create_engine(self.url, **waiting)
            with self._lock(), warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self.optuna = RDBStorage(
                    self.url.render_as_string(hide_password=False),
                    engine_kwargs=waiting,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=grace,
                )
        except ImportError as error:
            extra = "; pip install 'crisp-attention[postgresql]' brings it" if error.name == "psycopg" else ""
            raise OptionError(f"storage {self} needs the package {error.name}{extra}", "storage") from error
        except (OSError, RuntimeError, SQLAlchemyError, StorageInternalError) as error:
            raise OptionError(f"the study's storage {self} cannot be opened: {_reason(error)}") from error

    def __str__(self) -> str:
        """The URL without its password."""
        return without_password(self.url)

    def study(self, name: str, *, higher_is_better: bool = True) -> optuna.Study:
        """The study of that name, made if there is none."""
        return optuna.create_study(
            storage=self.optuna,
            study_name=name,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            direction="maximize" if higher_is_better else "minimize",
            load_if_exists=True,
        )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Raises OptionError, and says that the study can be continued, where the database fails."""
        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as error:
            raise OptionError(
                f"the study's storage {self} does not answer or cannot be written ({_reason(error)}); the study "
                f"is intact: once this is fixed, run the same command again"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other process holds the lock; the end of a process, however sudden, releases it.

        Raises OptionError as `answering` does.
        """
        with self.answering(), self._lock():
            yield

    def _lock(self) -> AbstractContextManager[object]:
        if self._dialect == "sqlite":
            return FileLock(f"{self.url.database}.lock")
        return self._database_lock()

    @contextmanager
    def _database_lock(self) -> Iterator[None]:
        number = int.from_bytes(hashlib.sha256(b"crisp-attention").digest()[:7])
        take, leave = (
            (f"SELECT pg_advisory_lock({number})", f"SELECT pg_advisory_unlock({number})")
            if self._dialect == "postgresql"
            else (f"SELECT GET_LOCK('{number}', -1)", f"SELECT RELEASE_LOCK('{number}')")
        )
        with self._engine.connect() as connection:
            connection.execute(sqlalchemy.text(take))
            try:
                yield
            finally:
                connection.execute(sqlalchemy.text(leave))


def without_password(url: str | URL) -> str:
    """The URL as it may be shown: no password, and no query, which may hold one too."""
    return sqlalchemy.make_url(url).set(query={}).render_as_string(hide_password=True)


def _url(text: str) -> URL:
    try:
        url = sqlalchemy.make_url(text)
    except (ArgumentError, ValueError) as error:  # the text may hold a password
        raise OptionError(
            "storage: expected a URL such as sqlite:///study.db or postgresql://user@host:5432/database",
            "storage",
        ) from error
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql", "mysql", "mariadb"):
        raise OptionError(
            f"storage: expected SQLite, PostgreSQL or MySQL, got {url.get_backend_name()}", "storage"
        )
    if url.get_backend_name() == "sqlite" and (url.database or ":memory:") == ":memory:":
        raise OptionError(
            "storage: expected a SQLite file, such as sqlite:///study.db, got one in memory", "storage"
        )
    return url


def _reason(error: BaseException) -> str:
    """The first line of the database's message, without the wrappers around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
