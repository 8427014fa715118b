"""Bugs, put into the library on purpose: each breaks a promise and must be caught by the test that is named.

Many are bugs that private-training libraries have had."""

from attacks.mutants.accounting import ACCOUNTING, EPSILONS
from attacks.mutants.bounded import BOUNDED
from attacks.mutants.certificates import CERTIFICATES, ROUNDINGS
from attacks.mutants.data import TABLES
from attacks.mutants.distributed import DISTRIBUTED
from attacks.mutants.enforced import ENFORCED
from attacks.mutants.joint import JOINT
from attacks.mutants.layers import OWN_GRADIENTS
from attacks.mutants.losses import LOSSES
from attacks.mutants.mixing import WHATEVER_THE_NUMBER
from attacks.mutants.nn import SEQUENCES, SUMS, WHATEVER_THE_WEIGHTS
from attacks.mutants.noise import NOISE
from attacks.mutants.optimizer import INNER_NODES, STEP, WEIGHTS_MOVED
from attacks.mutants.propagation import THE_TRACE_IS_THE_MODEL
from attacks.mutants.radii import ADAM, LEARNED, SLACK
from attacks.mutants.records import FILES, RECORDS
from attacks.mutants.reports import REPORTS
from attacks.mutants.rules import BOUNDS
from attacks.mutants.runtime import RANDOMNESS, READ_BEFORE_TRAINING_AND_THREADS
from attacks.mutants.sampling import SAMPLING
from attacks.mutants.separation import SEPARATION
from attacks.mutants.training import MEAN

MUTANTS = [
    *NOISE,
    *STEP,
    *SAMPLING,
    *BOUNDS,
    *LOSSES,
    *ACCOUNTING,
    *EPSILONS,
    *RECORDS,
    *REPORTS,
    *WHATEVER_THE_WEIGHTS,
    *OWN_GRADIENTS,
    *SEQUENCES,
    *CERTIFICATES,
    *MEAN,
    *WHATEVER_THE_NUMBER,
    *WEIGHTS_MOVED,
    *THE_TRACE_IS_THE_MODEL,
    *RANDOMNESS,
    *SEPARATION,
    *ROUNDINGS,
    *TABLES,
    *SUMS,
    *BOUNDED,
    *READ_BEFORE_TRAINING_AND_THREADS,
    *INNER_NODES,
    *FILES,
    *ENFORCED,
    *LEARNED,
    *SLACK,
    *ADAM,
    *JOINT,
    *DISTRIBUTED,
]
