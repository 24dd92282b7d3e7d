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
    "off greedy": Arm("off", "greedy"),
    "off likelihood": Arm("off", "likelihood"),
    "off only w(y-)": Arm("off", "sampled", REJECTED),
    "off only w(y+)": Arm("off", "sampled", CHOSEN),
    "hybrid dpo": Arm("hybrid"),
    "hybrid wpo": Arm("hybrid", "sampled"),
}
LABELS = {
    "on dpo": "DPO",
    "on wpo": "WPO",
    "off dpo": "DPO",
    "off wpo": "WPO sampled",
    "off greedy": "WPO greedy",
    "off likelihood": "WPO likelihood",
    "off only w(y-)": "only w(y-)",
    "off only w(y+)": "only w(y+)",
    "hybrid dpo": "DPO",
    "hybrid wpo": "WPO",
}
ALIGNMENTS = ("off wpo", "off greedy", "off likelihood", "off dpo")
ONE_SIDED = ("off only w(y-)", "off only w(y+)", "off wpo")
DATA = {"on": "on-policy", "off": "off-policy", "hybrid": "hybrid"}
