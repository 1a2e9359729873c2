"""`crisp.Study`: a study and its results."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from crisp_attention.studies.analysis import Analysis, Statement, analyse, statements
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.report import tables
from crisp_attention.studies.report.writing import check, write_report


@dataclass(frozen=True)
class Study:
    """A study of `crisp.sweep`, finished or not: dense and sparse models compared.

    Attributes
    ----------
    folder
        Its record and its runs.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> study = crisp.Study.open("runs/study")
    >>> study.table()["method"].tolist()
    ['dense', 'topk:sparsity=0.5', 'random:sparsity=0.5']
    """

    folder: StudyFolder

    @staticmethod
    def open(path: str | Path) -> "Study":
        """The study in a folder.

        Raises
        ------
        OptionError
            If there is none, or its record is damaged.
        """
        return Study(StudyFolder.read(Path(path)))

    @cached_property
    def analysis(self) -> Analysis:
        """Everything that the report shows, from the files as they are when it is first asked for."""
        return analyse(self.folder)

    def table(self) -> pd.DataFrame:
        """One row per configuration, shares as fractions of 1: what table.csv holds."""
        return tables.configurations(self.analysis)

    def verdicts(self) -> tuple[Statement, ...]:
        """The verdict of every comparison, with dense and with the random control, also where there is none."""
        return statements(self.analysis)

    def report(self, output: str | Path | None = None) -> Path:
        """Write report.html, summary.md, tables and figures into a folder, by default `report` in the study's.

        Returns
        -------
        Path
            The page.

        Raises
        ------
        OptionError
            If the folder holds other things, or cannot be written.
        """
        folder = Path(output) if output is not None else self.folder.path / "report"
        check(folder)  # before the analysis, which takes a while
        write_report(self.analysis, folder)
        return folder / "report.html"

    def failed(self) -> dict[tuple[str, int], str]:
        """The reasons of failed runs, by configuration and seed."""
        return self.folder.failed()

    def __repr__(self) -> str:
        plan = self.folder.plan
        return (
            f"Study({str(self.folder.path)!r}: {len(plan.configurations)} configurations, {len(plan.seeds)} seeds, "
            f"{len(self.folder.missing())} runs still to do)"
        )
