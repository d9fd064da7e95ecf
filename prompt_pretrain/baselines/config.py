"""The configuration keys of the baselines; names, types and defaults are the published ones where there are any."""

from fvcore.common.config import CfgNode

# TRAINER.NAME -> the node with its settings.
BASELINES = {
    "CoOp": "COOP",
    "CoCoOp": "COCOOP",
    "VPT": "VPT",
    "MaPLe": "MAPLE",
    "LASP": "LASP",
    "LinearProbe": "LINEAR_PROBE",
    "RPL": "RPL",
}


def add_baseline_config(trainer: CfgNode) -> None:
    """Add one node per baseline to ``cfg.TRAINER``, in place.

    PREC means the same in all of them as TRAINER.POMP.PREC.
    """
    coop = trainer.COOP = CfgNode()
    coop.N_CTX = 16  # Context vectors; CTX_INIT overrides it.
    coop.CSC = False  # True learns one context per class.
    coop.CTX_INIT = ""  # Words that the context starts from; "": Normal(0, 0.02).
    coop.CLASS_TOKEN_POSITION = "end"  # "end", "middle" or "front".
    coop.PREC = "amp"

    cocoop = trainer.COCOOP = CfgNode()
    cocoop.N_CTX = 4  # Context vectors; CTX_INIT overrides it.
    cocoop.CTX_INIT = "a photo of a"
    cocoop.PREC = "amp"

    vpt = trainer.VPT = CfgNode()
    vpt.N_CTX_VISION = 8  # Learned tokens per prompted layer of the image tower.
    vpt.PROMPT_DEPTH_VISION = 12  # Prompted layers: 1 is the shallow variant, all layers of the tower the deep one.
    vpt.CTX_INIT = "a photo of a"  # Fixed words before the class name.
    vpt.PREC = "amp"

    maple = trainer.MAPLE = CfgNode()
    maple.N_CTX = 2  # Learned tokens per prompted layer of both towers; the first N_CTX of CTX_INIT's words.
    maple.PROMPT_DEPTH = 9  # Prompted layers of both towers.
    maple.CTX_INIT = "a photo of a"
    maple.PREC = "amp"

    lasp = trainer.LASP = CfgNode()
    lasp.N_CTX = 4  # Context vectors; CTX_INIT overrides it.
    lasp.CTX_INIT = "a photo of a"
    lasp.GROUPS = 3  # Contexts, each near its own part of TEMPLATES.
    lasp.TEXT_WEIGHT = 20.0  # Factor of the text-to-text loss; that of the image loss is 1.
    lasp.TEMPLATES = "imagenet80"  # Hand-written prompts: the name of a set, or one text with {}.
    lasp.PREC = "amp"

    probe = trainer.LINEAR_PROBE = CfgNode()
    probe.PREC = "amp"  # Of the image tower; the layer itself is float32.

    rpl = trainer.RPL = CfgNode()  # Regional prompt learning; its data sets are RegionalCrops.
    rpl.N_CTX = 1  # Vectors in each of the two contexts, before the name and before the description.
    # Ours. N_CTX words that a context starts from ("_" is a blank), e.g. "which_is"; "": Normal(0, 0.02).
    rpl.CTX1_INIT = ""
    rpl.CTX2_INIT = ""
    rpl.PREC = "amp"

    hierarchy = trainer.HIERARCHY = CfgNode()  # Ours. For every trainer, with the softmax over all classes.
    # "none"; "positives": the LEVELS nearest parents in the class tree are right answers too; "smooth": WEIGHT of the
    # target goes to the classes below the same parent.
    hierarchy.MODE = "none"
    hierarchy.LEVELS = 1
    hierarchy.WEIGHT = 0.1
