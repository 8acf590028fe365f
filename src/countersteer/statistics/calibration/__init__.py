"""Calibration of steering strengths: find, per latent, the strength at which the mean score hits a target.

`PooledCalibrator` learns many latents at once; `BisectionCalibrator` is the ESR paper's. Both ask for rounds of
generations and are told scores. The outcome is frozen by `freeze` and read back by `load`.
"""

from countersteer.statistics.calibration.artefact import Calibration, freeze, load, pack
from countersteer.statistics.calibration.base import Calibrator, Estimate, Query, Settings
from countersteer.statistics.calibration.bisection import BisectionCalibrator
from countersteer.statistics.calibration.pooled import PooledCalibrator

__all__ = [
    "BisectionCalibrator",
    "Calibration",
    "Calibrator",
    "Estimate",
    "PooledCalibrator",
    "Query",
    "Settings",
    "freeze",
    "load",
    "pack",
]
