"""Steering as a runtime defence: contrast data, fit, sweep, scorecard. One trait, one bundle, graded before use.

Three splits that never meet: `fit` gives directions, `choose` picks the operating point, `report` grades it.
Coherence paper: arXiv 2604.08169. Each module is named by the one step it holds.
"""
