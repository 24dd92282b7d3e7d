"""What does the loss in anybody's trainer really compute? `xray(loss)` feeds exact inputs and names what comes out."""

from rlhf_lab.xray.run import Diagnosis, xray

__all__ = ["Diagnosis", "xray"]
