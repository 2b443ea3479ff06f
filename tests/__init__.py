"""The tests; `--jaxtyping-packages=prunefn,tests.typechecker` checks all signatures, where an int is a float, as for pyright."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
