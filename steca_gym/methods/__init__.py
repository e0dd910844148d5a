"""One short recipe a file: a function from a run to the trained model's folder. Knows the order of phases only."""

from steca_gym.registry import methods

methods.register("sft", "steca_gym.methods.sft:sft")
methods.register("rft", "steca_gym.methods.rft:rft")
methods.register("steca", "steca_gym.methods.steca:steca")
