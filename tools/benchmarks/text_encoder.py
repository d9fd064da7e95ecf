"""Text encoder: the shared-prefix path against the plain 77-token path, ViT-B/16 shapes, real ImageNet-21K names.

    python tools/benchmarks/text_encoder.py [--quick] [--json FILE] [--device cpu|cuda]

Prints forward+backward time per class and the activations saved per class on both paths, how far features and
gradients differ, and the share of the machine's own matrix-multiplication rate that is reached: the floor is the
FLOPs of the linear layers over the distinct tokens below the shared prefix. Without ``--quick`` also whole
vocabularies, each in a process of its own whose peak memory is reported.
"""

import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Callable

import torch
from _records import Record, best_seconds, parse_arguments, report
from torch import Tensor

from prompt_pretrain.clip import Clip, clip_from_config
from prompt_pretrain.prompt_tokens import PromptTokens, tokenize_prompts, tokenize_texts
from prompt_pretrain.text_encoder import TextEncoder
from prompt_pretrain.vocabulary import load_vocabulary

VIT_B16_TEXT = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},  # not used here
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    "quick_gelu": True,
}
GIB = 2**30


def main() -> int:
    options = parse_arguments(__doc__)
    torch.manual_seed(0)
    records = compare(options.device, n_ctx=16, sampled=256 if options.quick else 1000, quick=options.quick)
    if not options.quick:
        records += compare(options.device, n_ctx=4, sampled=1000, quick=False)
        records += whole_vocabularies(options.device)
    report(records, options.json)
    return 0


def compare(device: str, n_ctx: int, sampled: int, quick: bool) -> list[Record]:
    """Both paths on random names of the 10,450-class set; the plain one on fewer, and all counted per class."""
    clip = make_clip(device)
    names = random.Random(0).sample(load_vocabulary("imagenet21k").class_names, sampled)
    few = 16 if quick and device == "cpu" else 64
    ctx = (torch.randn(n_ctx, clip.text_width) * 0.02).to(device).requires_grad_()
    fast, plain = TextEncoder(clip, "shared_prefix"), TextEncoder(clip, "plain")
    many_prompts = tokenize_prompts(names, clip.tokenizer, n_ctx)
    few_prompts = tokenize_prompts(names[:few], clip.tokenizer, n_ctx)

    suffix = "" if n_ctx == 16 else f"_m{n_ctx}"
    records = [*exactness(fast, plain, few_prompts, ctx, suffix)]
    fast_time = best_seconds(lambda: step(fast, many_prompts, ctx), 3, device) / sampled
    plain_time = best_seconds(lambda: step(plain, few_prompts, ctx), 2, device) / few
    flops = 2 * linear_flops(fast, many_prompts) / sampled
    rate = matmul_rate(device, torch.float32)
    name = f"text_encoder/forward_backward_time_ratio{suffix}"
    ratio = plain_time / fast_time
    records.append(Record(name, ratio, "x", ratio=ratio, limit_fraction=flops / rate / fast_time))
    name = f"text_encoder/forward_backward_ms_per_class{suffix}"
    records.append(Record(name, fast_time * 1e3, "ms", plain_time * 1e3, plain_time / fast_time))
    for label, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            ours = saved_bytes(fast, many_prompts, ctx) / sampled / 1e6
            theirs = saved_bytes(plain, few_prompts, ctx) / few / 1e6
        records.append(Record(f"text_encoder/saved_mb_per_class_{label}{suffix}", ours, "MB", theirs, theirs / ours))
    records.append(Record(f"text_encoder/matmul_gflops{suffix}", rate / 1e9, "GFLOP/s"))
    return records


def exactness(fast: TextEncoder, plain: TextEncoder, prompts: PromptTokens, ctx: Tensor, suffix: str) -> list[Record]:
    features, grad = features_and_grad(fast, prompts, ctx)
    reference, reference_grad = features_and_grad(plain, prompts, ctx)
    error = (features - reference).abs().max().item()
    grad_error = ((grad - reference_grad).norm() / reference_grad.norm()).item()
    return [
        Record(f"text_encoder/max_feature_error{suffix}", error, ""),
        Record(f"text_encoder/ctx_grad_relative_error{suffix}", grad_error, ""),
    ]


def whole_vocabularies(device: str) -> list[Record]:
    """Every case in a fresh process, so that its peak memory is its own."""
    cases: list[tuple[Callable[..., tuple[float, float, float]], str, tuple]] = [
        (train_step, "step_10450", ("imagenet21k", None)),
        (train_step, "step_21841_budget_8gb", ("imagenet21k_full", 8 * GIB)),
        (encode_names, "encode_21841", ("imagenet21k_full",)),
        (encode_templates_case, "encode_10450_template", ("imagenet21k",)),
    ]
    if device == "cuda":
        cases += [
            (train_step, "step_1000", ("imagenet21k", None, 1000)),
            (train_step, "step_21841", ("imagenet21k_full", None)),
        ]
    records = []
    for run, name, arguments in cases:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, gigabytes, fraction = pool.apply(run, (device, *arguments))
        records.append(Record(f"text_encoder/{name}_seconds", seconds, "s", limit_fraction=fraction))
        records.append(Record(f"text_encoder/{name}_peak_gb", gigabytes, "GB"))
    return records


def train_step(
    device: str, vocabulary: str, budget: int | None, count: int | None = None
) -> tuple[float, float, float]:
    """Seconds, peak memory in GB and share of the floor of one forward and backward pass over all names."""
    clip = make_clip(device)
    names = load_vocabulary(vocabulary).class_names[:count]
    prompts = tokenize_prompts(names, clip.tokenizer, 16)
    encoder = TextEncoder(clip)
    ctx = (torch.randn(16, clip.text_width) * 0.02).to(device).requires_grad_()
    rate = matmul_rate(device, torch.float32)
    seconds = timed(lambda: step(encoder, prompts, ctx, memory_budget=budget), device)
    return seconds, peak_gigabytes(device), 2 * linear_flops(encoder, prompts) / rate / seconds


def encode_names(device: str, vocabulary: str) -> tuple[float, float, float]:
    clip = make_clip(device)
    prompts = tokenize_prompts(load_vocabulary(vocabulary).class_names, clip.tokenizer, 16)
    return encode(device, clip, prompts, torch.randn(16, clip.text_width, device=device))


def encode_templates_case(device: str, vocabulary: str) -> tuple[float, float, float]:
    clip = make_clip(device)
    texts = [f"a photo of a {name}." for name in load_vocabulary(vocabulary).class_names]
    return encode(device, clip, tokenize_texts(texts, clip.tokenizer), None)


def encode(device: str, clip: Clip, prompts: PromptTokens, ctx: Tensor | None) -> tuple[float, float, float]:
    encoder = TextEncoder(clip)
    rate = matmul_rate(device, torch.float32)
    with torch.no_grad():
        seconds = timed(lambda: encoder(prompts, ctx), device)
    return seconds, peak_gigabytes(device), linear_flops(encoder, prompts) / rate / seconds


def step(encoder: TextEncoder, prompts: PromptTokens, ctx: Tensor, **options: int | None) -> Tensor:
    return features_and_grad(encoder, prompts, ctx, **options)[1]


def features_and_grad(
    encoder: TextEncoder, prompts: PromptTokens, ctx: Tensor, **options: int | None
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and the gradient of their cosine with a fixed direction, as a loss would ask for it."""
    features = encoder(prompts, ctx, **options)  # type: ignore[arg-type]
    direction = torch.linspace(-1, 1, features.shape[1], device=features.device)
    (grad,) = torch.autograd.grad(torch.nn.functional.cosine_similarity(features, direction).sum(), ctx)
    return features.detach(), grad


def linear_flops(encoder: TextEncoder, prompts: PromptTokens) -> float:
    """FLOPs of the linear layers over the distinct tokens of a forward pass; backward costs the same again."""
    nodes, leaves = encoder.count_nodes(prompts)
    width, layers = encoder.clip.text_width, len(encoder.tower.blocks) if encoder.tower else 0
    per_node = 2 * 12 * width**2
    last = nodes * 2 * 2 * width**2 + leaves * 2 * 10 * width**2  # keys and values of all, the rest for EOT alone
    return (layers - 1) * nodes * per_node + last


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the largest matrix multiplication of the transformer, the machine's practical limit for it."""
    x = torch.randn(4096, 512, device=device, dtype=dtype)
    weight = torch.randn(2048, 512, device=device, dtype=dtype)
    seconds = best_seconds(lambda: torch.nn.functional.linear(x, weight), 12, device)
    return 2 * 4096 * 512 * 2048 / seconds


def saved_bytes(encoder: TextEncoder, prompts: PromptTokens, ctx: Tensor) -> int:
    """Bytes of distinct storages that autograd keeps for backward, less what a single class keeps.

    The difference leaves out what does not grow with the classes: weights (cast under autocast), the shared prefix.
    """
    return _saved_storages(encoder, prompts, ctx) - _saved_storages(encoder, prompts.select(torch.tensor([0])), ctx)


def _saved_storages(encoder: TextEncoder, prompts: PromptTokens, ctx: Tensor) -> int:
    kept: list[Tensor] = []  # alive until the count is done, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = encoder(prompts, ctx)
    del features
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(storages.values())


def timed(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        run()
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_gigabytes(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def make_clip(device: str) -> Clip:
    clip = clip_from_config(VIT_B16_TEXT)
    return clip.to(device)


if __name__ == "__main__":
    sys.exit(main())
