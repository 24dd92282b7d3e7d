"""The arms of the study `summarization-offpolicy`: a data set, and WPO's weights or none."""

from typing import NamedTuple

from rlhf_lab.objective import Objective, Weighting

BETA = 0.1
BOTH, CHOSEN, REJECTED = (0, 1), (0,), (1,)


class Arm(NamedTuple):
    """A data set, and WPO's alignment and the responses whose weights count; weighting None is DPO."""

    data: str
    weighting: Weighting | None = None
    sides: tuple[int, ...] = BOTH

    @property
    def objective(self) -> Objective:
        return Objective(beta=BETA, weighting=self.weighting)


ARMS = {
    "on dpo": Arm("on"),
    "on wpo": Arm("on", "sampled"),
    "off dpo": Arm("off"),
    "off wpo": Arm("off", "sampled"),
    "off only w(y-)": Arm("off", "sampled", REJECTED),
    "hybrid dpo": Arm("hybrid"),
    "hybrid wpo": Arm("hybrid", "sampled"),
}
LABELS = {
    "on dpo": "DPO",
    "on wpo": "WPO",
    "off dpo": "DPO",
    "off wpo": "WPO",
    "off only w(y-)": "only w(y-)",
    "hybrid dpo": "DPO",
    "hybrid wpo": "WPO",
}
DATA = {"on": "on-policy", "off": "off-policy", "hybrid": "hybrid"}
# WPO's claim on each data set, and its weight of the rejected response alone, each against DPO on the same pairs.
CLAIMS = (("off wpo", "off dpo"), ("off only w(y-)", "off dpo"), ("hybrid wpo", "hybrid dpo"), ("on wpo", "on dpo"))
