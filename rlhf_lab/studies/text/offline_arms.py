"""The arms of the study `summarization-offline`: an objective, its name and line, and its learning rate."""

from typing import NamedTuple

from rlhf_lab.common.plots import method_colour
from rlhf_lab.objective import Objective, preset

BETA, LEARNING_RATE, LESS = 0.1, 5e-5, 2e-5


class Arm(NamedTuple):
    """What is trained; method gives the colour. label: its name in tables and figures; line: in figures."""

    label: str
    method: str
    objective: Objective
    line: str = "o-"
    learning_rate: float = LEARNING_RATE

    @property
    def colour(self) -> str:
        return method_colour(self.method)


def _vpo(alpha: float) -> Objective:
    return preset("vpo-offline", beta=BETA, alpha=alpha)


ARMS = {
    "dpo": Arm("DPO", "dpo", preset("dpo", beta=BETA)),
    # The trivial rival of pessimism: less training of the same.
    "dpo slow": Arm("DPO, learning rate 2e-5", "dpo", preset("dpo", beta=BETA), "o--", LESS),
    "wpo": Arm("WPO", "wpo", preset("wpo", beta=BETA)),
    "vpo .2": Arm("VPO offline, alpha .2", "vpo-offline", _vpo(0.2)),
    "vpo 1": Arm("VPO offline, alpha 1", "vpo-offline", _vpo(1.0), "o--"),
    # Its released code (YSLIU627/Regularized-Preference-Optimization, rpo_trainer.py) subtracts beta * eta * the summed
    # log-prob of the chosen response, with eta .005: that is alpha .005.
    "rpo": Arm("RPO, beta .01", "rpo", preset("rpo", alpha=0.005)),
}
PESSIMISTIC = ("vpo .2", "vpo 1")
