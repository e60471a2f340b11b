"""Test runs share the cores: with a thread per core, they and the scripts that they start wait for one another."""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}  # before libraries read them
