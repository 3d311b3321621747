"""All verbs by their name, and all studies by theirs. A new one is a line here."""

from raysft.studies.study import Study
from raysft.verbs.align import ALIGN
from raysft.verbs.data_size import DATA_SIZE
from raysft.verbs.doctor import DOCTOR, PROVE
from raysft.verbs.dpo import DPO
from raysft.verbs.grad_variance import GRAD_VARIANCE
from raysft.verbs.masking import MASKING
from raysft.verbs.over_optimization import OVER_OPTIMIZATION
from raysft.verbs.pairs import PAIRS
from raysft.verbs.ppo import PPO
from raysft.verbs.reward import REWARD
from raysft.verbs.seq_len import SEQ_LEN
from raysft.verbs.stability import STABILITY
from raysft.verbs.train import TRAIN
from raysft.verbs.tune import TUNE
from raysft.verbs.verb import Verb

ALL = (
    *(TRAIN, PAIRS, REWARD, DPO, PPO, ALIGN, TUNE),
    *(SEQ_LEN, GRAD_VARIANCE, MASKING, DATA_SIZE, STABILITY, OVER_OPTIMIZATION),
    *(DOCTOR, PROVE),
)
VERBS: dict[str, Verb] = {verb.name: verb for verb in ALL}
STUDIES: dict[str, Study] = {verb.study.name: verb.study for verb in VERBS.values() if verb.study}
