import torch

from prompt_pretrain.classification.randomness import make_generator, stream_seed


def test_streams_differ_in_every_counter_and_purpose():
    seeds = {stream_seed("view", a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds | {stream_seed("order", 0, 0, 0)}) == 126
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_does_not_depend_on_global_state():
    torch.manual_seed(1)
    first = torch.rand(3, generator=make_generator("x", 1))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(first, torch.rand(3, generator=make_generator("x", 1)))
    assert torch.equal(state, torch.get_rng_state())
