"""`python -m wsol_lib`, and `torchrun -m wsol_lib`: the same as `wsol`."""

import os

# DistributedDataParallel looks for unused parameters, since a rank's pictures may use only some of a method's; where
# there are none it says so at every start, which no reader can act on.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from wsol_lib.cli import app

app(prog_name="wsol")
