"""What a study says, from what lies in its folder."""

from crisp_attention.studies.analysis.answers import read_answers
from crisp_attention.studies.analysis.comparisons import compare_all
from crisp_attention.studies.analysis.flips import flips_table
from crisp_attention.studies.analysis.lines import line, runs_table
from crisp_attention.studies.analysis.notes import notes_on
from crisp_attention.studies.analysis.results import Analysis, Comparison
from crisp_attention.studies.study import Study


def analyse(study: Study) -> Analysis:
    """Compare every configuration with dense and, where there is one, with its random control.

    An unfinished study is analysed as far as it goes. Raises OptionError, naming the file or the runs, for
    files that are damaged and for runs that did not predict the same examples.
    """
    answers = read_answers(study)
    others = [each for each in study.configurations if not each.is_dense]
    to_dense = compare_all(others, study.dense, answers)
    to_random: dict[str, Comparison] = {}
    for control in (each for each in others if each.is_random):
        controlled = [each for each in others if study.control(each) == control]
        to_random |= compare_all(controlled, control, answers)
    runs = {each.id: runs_table(each, answers) for each in study.configurations}
    lines = tuple(
        line(study, each, runs, to_dense.get(each.id), to_random.get(each.id))
        for each in study.configurations
    )
    return Analysis(study, answers.split, lines, flips_table(study, answers), notes_on(study, answers))
