"""Statistics of rare, clustered events: rates, means, paired contrasts, resample baseline, agreement, power.

Pure numpy, scipy and statsmodels; every random draw takes an explicit generator. Which interval means what is
explained in docs/statistics.md. Calibration of strengths is the subpackage `calibration`.
"""

from countersteer.statistics.agreement import Agreement, LabelAgreement, ScoreAgreement
from countersteer.statistics.auc import ClusteredAuc, clustered_auc
from countersteer.statistics.bootstrap import mean
from countersteer.statistics.contrasts import Contrast, Pairs, contrast, holm, pair
from countersteer.statistics.levels import Among, among
from countersteer.statistics.power import Design, Detectable, Smallest, detectable, smallest
from countersteer.statistics.rates import Interval, Rate, design_effect, rate, wilson
from countersteer.statistics.resample import ResampleBaseline, Retry, resample_baseline

__all__ = [
    "Agreement",
    "Among",
    "ClusteredAuc",
    "Contrast",
    "Design",
    "Detectable",
    "Interval",
    "LabelAgreement",
    "Pairs",
    "Rate",
    "ResampleBaseline",
    "Retry",
    "ScoreAgreement",
    "Smallest",
    "among",
    "clustered_auc",
    "contrast",
    "design_effect",
    "detectable",
    "holm",
    "mean",
    "pair",
    "rate",
    "resample_baseline",
    "smallest",
    "wilson",
]
