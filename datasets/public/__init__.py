"""The public data sets of the paper.

| set | scans | ids | lists |
|---|---|---|---|
| CovidSeg (A) | 20, all labelled | covidseg_coronacases_001, covidseg_radiopaedia_10_85902_1 | A_sub1, A_sub2 |
| MedSeg (B) | 9, all labelled | medseg_1 | B |
| MosMed (C, D) | 1110, 50 labelled | mosmed_study_0255 | C, D_healthy, D_diseased |

To add a set, describe it in a module like `medseg.py` and add it to `SETS`.
"""

from datasets.public.covidseg import COVIDSEG
from datasets.public.medseg import MEDSEG
from datasets.public.mosmed import MOSMED

SETS = {public_set.name: public_set for public_set in (COVIDSEG, MEDSEG, MOSMED)}
"""All sets by name."""

__all__ = ["COVIDSEG", "MEDSEG", "MOSMED", "SETS"]
