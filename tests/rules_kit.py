"""What tests of rules share."""

from noisebook.codec.codec import Codec, rule_of
from noisebook.rules import Rule
from noisebook.spec.schedule import falling, log_uniform
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import Step


def build(backbone, budget=4, steps=6, effort=0, **changes) -> Codec:
    """A small codec; `changes` are fields of its specification, `budget` one number or one per step."""
    schedule = falling(log_uniform(3, 0.2, steps), 0.5, budget)
    changes = {"vocab_size": 512, "start_vocab_size": 256, **changes}
    return Codec(CodecSpec(backbone.name, backbone.fingerprint, schedule, **changes), backbone, effort=effort)


def rule_for(rule: str, step: Step, kind: str, vocab_size: int, seed: int, **changes) -> Rule:
    """The rule of that name, on a codebook of that kind."""
    return rule_of(CodecSpec("b", "f", (step,), codebook=kind, vocab_size=vocab_size, seed=seed, rule=rule, **changes))
