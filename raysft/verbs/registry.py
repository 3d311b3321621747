"""All verbs by their name, and all studies by theirs. A new one is a line here."""

from raysft.errors import UserError
from raysft.studies.study import Results, Study
from raysft.verbs.doctor import DOCTOR, PROVE
from raysft.verbs.seq_len import SEQ_LEN
from raysft.verbs.train import TRAIN
from raysft.verbs.tune import TUNE
from raysft.verbs.verb import Verb

VERBS: dict[str, Verb] = {verb.name: verb for verb in (TRAIN, TUNE, SEQ_LEN, DOCTOR, PROVE)}
STUDIES: dict[str, Study] = {verb.study.name: verb.study for verb in VERBS.values() if verb.study}


def study_of(results: Results) -> Study:
    """The one that these results are of. Raises UserError: this version knows none of that name."""
    name = results["study"]
    if name not in STUDIES:
        known = ", ".join(STUDIES)
        raise UserError(f"results of an unknown study {name!r}: this raysft knows {known}")
    return STUDIES[name]
