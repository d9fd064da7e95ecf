"""Settings that follow from data."""

from fvcore.common.config import CfgNode

from prompt_pretrain.untyped_settings import UntypedSettings


def test_what_was_typed_stays() -> None:
    cfg = CfgNode({"A": {"B": 1, "C": 2}, "D": 3})
    chosen = UntypedSettings(cfg, ["A.B", "1"])
    chosen.set("A.B", 5)
    chosen.set("A.C", 6)
    chosen.set("D", 7)
    assert (cfg.A.B, cfg.A.C, cfg.D) == (1, 6, 7)
    UntypedSettings(cfg, None).set("A.B", 8)
    assert cfg.A.B == 8
