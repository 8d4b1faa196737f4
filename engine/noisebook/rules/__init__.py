"""Selection rules: how a step's residual becomes tokens, and tokens become noise. One file per rule.

Adding a rule: write its file, with a subclass of `Rule`, and name it here. No other code names the rules one by one.
"""

from noisebook.rules.base import EFFORT, Rule
from noisebook.rules.bins import Bins
from noisebook.rules.poisson import Poisson
from noisebook.rules.pursuit import Pursuit
from noisebook.rules.top import Top

#: the rules by the name that a specification gives them
RULES: dict[str, type[Rule]] = {"bins": Bins, "top": Top, "pursuit": Pursuit, "poisson": Poisson}

__all__ = ["EFFORT", "RULES", "Bins", "Poisson", "Pursuit", "Rule", "Top"]
