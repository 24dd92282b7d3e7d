"""Bradley-Terry, complete: who wins a comparison, and what comparisons tell about the rewards behind them.

    P(a > b) = sigma(r_a - r_b)

`comparisons` the draw, counts, likelihood; `model` win matrices; `fit` maximum likelihood, goodness of fit; `estimate`
standard errors and intervals in a gauge; `connectivity` when a finite maximum exists; `ties`, `plackett_luce`
(rankings), `linear` (rewards phi . theta); `newton` finds every maximum, here and in `worlds`.
Everything takes leading batch dimensions: a thousand win matrices are fitted in one call.
"""

from rlhf_lab.bradley_terry.comparisons import preference_probability, sample_preferences
from rlhf_lab.bradley_terry.connectivity import check_connected, strong_components
from rlhf_lab.bradley_terry.estimate import Estimate
from rlhf_lab.bradley_terry.fit import GoodnessOfFit, fit_comparisons, fit_rewards, goodness_of_fit
from rlhf_lab.bradley_terry.linear import LinearFit, fit_linear
from rlhf_lab.bradley_terry.model import log_likelihood, sample_wins, win_matrix
from rlhf_lab.bradley_terry.plackett_luce import fit_rankings, ranking_log_likelihood, sample_rankings
from rlhf_lab.bradley_terry.ties import TieFit, fit_ties, sample_ties, tie_log_likelihood, tie_probabilities

__all__ = [
    "Estimate",
    "GoodnessOfFit",
    "LinearFit",
    "TieFit",
    "check_connected",
    "fit_comparisons",
    "fit_linear",
    "fit_rankings",
    "fit_rewards",
    "fit_ties",
    "goodness_of_fit",
    "log_likelihood",
    "preference_probability",
    "ranking_log_likelihood",
    "sample_preferences",
    "sample_rankings",
    "sample_ties",
    "sample_wins",
    "strong_components",
    "tie_log_likelihood",
    "tie_probabilities",
    "win_matrix",
]
