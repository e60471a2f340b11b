"""The public data sets of the paper.

| set | scans | ids | lists |
|---|---|---|---|
| CovidSeg (A) | 20, all labelled | covidseg_coronacases_001, covidseg_radiopaedia_10_85902_1 | A_sub1, A_sub2 |
| MedSeg (B) | 9, all labelled | medseg_1 | B |
| MosMed (C, D) | 1110, 50 labelled | mosmed_study_0255 | C, D_healthy, D_diseased |

`sets.py` describes them.
"""
