"""The Optuna storage of a study, and the lock under which its queue changes."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from crisp_attention.training.data.error import first_line
from crisp_attention.training.options import OptionError

HEARTBEAT_SECONDS = 20
GRACE_SECONDS = 120
DATABASE = "study.db"


class Storage:
    """A database that several processes, and machines, share.

    Optuna itself lets two processes take the same waiting trial from SQLite, and lets two machines plan
    one study twice; so whatever reads the queue and then changes it does so inside `locked()`.
    """

    def __init__(self, url: str | None, folder: Path) -> None:
        """`url`: an RDB URL, None for a SQLite file in `folder`. Raises OptionError if it cannot be opened."""
        try:
            self.url = sqlalchemy.make_url(url or f"sqlite:///{(folder / DATABASE).absolute()}")
        except ArgumentError as error:
            raise OptionError(f"--storage: expected a URL such as sqlite:///study.db, got {url!r}") from error
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        self._dialect = self.url.get_backend_name()
        if self._dialect not in ("sqlite", "postgresql", "mysql", "mariadb"):
            raise OptionError(f"--storage: expected SQLite, PostgreSQL or MySQL, got {self._dialect}")
        waiting = {"connect_args": {"timeout": 60}} if self._dialect == "sqlite" else {"pool_pre_ping": True}
        try:
            self._engine = sqlalchemy.create_engine(self.url)
            with self.locked(), warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self.optuna = RDBStorage(
                    self.url.render_as_string(hide_password=False),
                    engine_kwargs=waiting,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                )
        except (ImportError, OSError, SQLAlchemyError) as error:
            raise OptionError(f"--storage {self}: cannot be opened: {first_line(error)}") from error

    def __str__(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def study(self, name: str) -> optuna.Study:
        """The study of that name, made if there is none; more is better."""
        return optuna.create_study(
            storage=self.optuna,
            study_name=name,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            direction="maximize",
            load_if_exists=True,
        )

    def locked(self) -> AbstractContextManager[object]:
        """Wait until no other process is inside; the end of a process, however sudden, leaves the lock."""
        if self._dialect == "sqlite":
            return FileLock(f"{self.url.database}.lock")
        return self._locked_in_database()

    @contextmanager
    def _locked_in_database(self) -> Iterator[None]:
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
