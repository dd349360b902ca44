"""Which attack meets which view: one function each, from a threat model and a seed to claims and their control.

Every function makes the honest parties' messages first and hands the attack a view of them; what it returns is scored
by :mod:`focal.attacks.study` alone. ``teeth`` names the row where the same attack meets something to see: an attack
that finds nothing there is no evidence for anybody.
"""

from focal.attacks.scenarios import activations as activations
from focal.attacks.scenarios import gradients as gradients
from focal.attacks.scenarios import joint as joint
from focal.attacks.scenarios import released as released
from focal.attacks.scenarios import ring as ring
from focal.attacks.scenarios import uploads as uploads
from focal.attacks.scenarios.registry import SCENARIOS as SCENARIOS
from focal.attacks.scenarios.registry import Found as Found
from focal.attacks.scenarios.registry import Scenario as Scenario
