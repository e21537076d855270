"""Training methods, one file each: `Options` and `NAME(options, training) -> Hooks`; a new one is a row here."""

CHANNELS = "pipeline.training.methods.channels"
WEIGHTS = "pipeline.training.methods.weights"
GATED = "pipeline.training.methods.gated"
STARTS = "pipeline.training.methods.starts"
ROUNDS = "pipeline.training.methods.rounds"
STRAIGHT_THROUGH = "pipeline.training.methods.straight_through"

METHODS = {
    "demp": "pipeline.training.methods.demp:demp",
    # channels that go by rank until a target is met
    "slimming": f"{CHANNELS}.slimming:slimming",
    "group_norm": f"{CHANNELS}.group_norm:group_norm",
    "hesso": f"{CHANNELS}.hesso:hesso",
    "taylor": f"{CHANNELS}.taylor:taylor",
    "magnitude": f"{CHANNELS}.magnitude:magnitude",
    "random": f"{CHANNELS}.random:random",
    "ispasp": f"{CHANNELS}.ispasp:ispasp",
    "targeted_dropout": f"{GATED}.targeted_dropout:targeted_dropout",
    "snap": f"{GATED}.crop:snap",
    "crop": f"{GATED}.crop:crop",
    "earlycrop": f"{GATED}.crop:earlycrop",
    # channels whose gates close while the network trains
    "variational": f"{GATED}.variational:variational",
    # masks on weights that move while the network trains
    "rigl": f"{WEIGHTS}.rigl:rigl",
    "set": f"{WEIGHTS}.set:set_",
    "srigl": f"{WEIGHTS}.srigl:srigl",
    "chase": f"{WEIGHTS}.chase:chase",
    "ctre": f"{WEIGHTS}.ctre:ctre",
    "east": "pipeline.training.methods.east.east:east",
    "truly_sparse": "pipeline.training.methods.truly_sparse.truly_sparse:truly_sparse",
    "scl": f"{STRAIGHT_THROUGH}.scl:scl",
    "sr_ste": f"{STRAIGHT_THROUGH}.sr_ste:sr_ste",
    # masks chosen at the start
    "static_erk": f"{STARTS}.static:static_erk",
    "static_uniform": f"{STARTS}.static:static_uniform",
    "snip": f"{STARTS}.snip:snip",
    "kstarts": f"{STARTS}.kstarts:kstarts",
    "dissipating": f"{STARTS}.dissipating:dissipating",
    "kstarts_dissipating": f"{STARTS}.kstarts_dissipating:kstarts_dissipating",
    # train, prune, train again
    "han": f"{ROUNDS}.han:han",
    "lottery_ticket": f"{ROUNDS}.lottery_ticket:lottery_ticket",
    "imp": f"{ROUNDS}.imp:imp",
    "bimp": f"{ROUNDS}.bimp:bimp",
    "nnrelief": f"{ROUNDS}.nnrelief:nnrelief",
}
