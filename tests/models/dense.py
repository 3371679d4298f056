"""Families written straight down in float64: one sequence, whole attention, no paging, no Program."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from checkpoint import Weights

Rotate = Callable[[np.ndarray, float], np.ndarray]  # a head's [N, D], theta


@dataclass(frozen=True)
class Sizes:
    """Dimensions, given by the test and not read from the file."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate_interleaved(x: np.ndarray, theta: float, scale: float = 1.0, factors: object = 1.0) -> np.ndarray:
    """Elements 2i and 2i + 1 are the parts of a complex number that turns."""
    count, width = x.shape
    frequency = theta ** (-np.arange(0, width, 2) / width) / scale / np.asarray(factors)
    turned = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * np.outer(np.arange(count), frequency))
    return np.stack([turned.real, turned.imag], axis=-1).reshape(count, width)


def rotate_half(x: np.ndarray, theta: float, scale: float = 1.0) -> np.ndarray:
    """Elements i and i + D / 2 turn together."""
    count, width = x.shape
    angle = np.outer(np.arange(count) / scale, theta ** (-np.arange(0, width, 2) / width))
    angle = np.concatenate([angle, angle], axis=1)
    swapped = np.concatenate([-x[:, width // 2 :], x[:, : width // 2]], axis=1)
    return x * np.cos(angle) + swapped * np.sin(angle)


def visible(count: int, window: int | None) -> np.ndarray:
    """Which positions (columns) each query (rows) sees."""
    mask = np.zeros((count, count), bool)
    for query in range(count):
        first = 0 if window is None else max(0, query - window + 1)
        mask[query, first : query + 1] = True
    return mask


def attention(q, k, v, sizes: Sizes, scale: float, window: int | None, cap: float = np.inf) -> np.ndarray:
    """Head by head; q [N, H * D], k and v [N, K * D]."""
    d, outs = sizes.head_dim, []
    for head in range(sizes.heads):
        kv = head // (sizes.heads // sizes.kv_heads)
        own_q, own_k, own_v = (a[:, i * d : (i + 1) * d] for a, i in [(q, head), (k, kv), (v, kv)])
        scores = softcap(own_q @ own_k.T * scale, cap)
        scores = np.where(visible(len(q), window), scores, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        outs.append(weights / weights.sum(1, keepdims=True) @ own_v)
    return np.concatenate(outs, axis=1)


def softcap(x: np.ndarray, cap: float) -> np.ndarray:
    return x if cap == np.inf else cap * np.tanh(x / cap)


def per_head(x: np.ndarray, width: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.concatenate([change(x[:, i : i + width]) for i in range(0, x.shape[1], width)], axis=1)


def linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def llama(w: Weights, s: Sizes, tokens: list[int], rotate: Rotate, window: int | None = None) -> np.ndarray:
    """Log-probs [N, vocabulary]."""
    x = w["token_embd.weight"][tokens]
    for layer in range(s.layers):
        b = f"blk.{layer}."
        h = rms_norm(x, w[b + "attn_norm.weight"], s.eps)
        q, k, v = (linear(h, w, b + name) for name in ("attn_q", "attn_k", "attn_v"))
        if b + "attn_q_norm.weight" in w:
            q = per_head(q, s.head_dim, lambda head, b=b: rms_norm(head, w[b + "attn_q_norm.weight"], s.eps))
            k = per_head(k, s.head_dim, lambda head, b=b: rms_norm(head, w[b + "attn_k_norm.weight"], s.eps))
        q, k = (per_head(a, s.head_dim, lambda head: rotate(head, s.theta)) for a in (q, k))
        x = x + linear(attention(q, k, v, s, 1 / math.sqrt(s.head_dim), window), w, b + "attn_output")
        h = rms_norm(x, w[b + "ffn_norm.weight"], s.eps)
        gate, up = linear(h, w, b + "ffn_gate"), linear(h, w, b + "ffn_up")
        x = x + linear(gate / (1 + np.exp(-gate)) * up, w, b + "ffn_down")
    head = w.get("output.weight", w["token_embd.weight"])
    return log_softmax(rms_norm(x, w["output_norm.weight"], s.eps) @ head.T)


def gemma3(w: Weights, s: Sizes, tokens: list[int], window: int, stretch: float = 1.0) -> np.ndarray:
    """Log-probs [N, vocabulary]; layers 6, 12, ... are global, with the theta of `s` stretched."""
    x = w["token_embd.weight"][tokens] * math.sqrt(w["token_embd.weight"].shape[1])
    for layer in range(s.layers):
        b, is_global = f"blk.{layer}.", layer % 6 == 5
        theta, scale = (s.theta, stretch) if is_global else (10000.0, 1.0)
        h = rms_norm(x, w[b + "attn_norm.weight"], s.eps)
        q, k, v = (linear(h, w, b + name) for name in ("attn_q", "attn_k", "attn_v"))
        turned = []
        for a, norm in [(q, w[b + "attn_q_norm.weight"]), (k, w[b + "attn_k_norm.weight"])]:
            normed = per_head(a, s.head_dim, lambda head, norm=norm: rms_norm(head, norm, s.eps))
            turned.append(
                per_head(normed, s.head_dim, lambda head, t=theta, c=scale: rotate_half(head, t, c))
            )
        a = attention(*turned, v, s, 1 / math.sqrt(s.head_dim), None if is_global else window)
        h = linear(a, w, b + "attn_output")
        x = x + rms_norm(h, w[b + "post_attention_norm.weight"], s.eps)
        h = rms_norm(x, w[b + "ffn_norm.weight"], s.eps)
        gate, up = linear(h, w, b + "ffn_gate"), linear(h, w, b + "ffn_up")
        gelu = gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        x = x + rms_norm(linear(gelu * up, w, b + "ffn_down"), w[b + "post_ffw_norm.weight"], s.eps)
    return log_softmax(rms_norm(x, w["output_norm.weight"], s.eps) @ w["token_embd.weight"].T)


def gemma2(
    w: Weights, s: Sizes, tokens: list[int], window: int, query_size: float, caps: tuple[float, float]
) -> np.ndarray:
    """Log-probs [N, vocabulary]; even layers see the window; `caps` of scores and logits."""
    x = w["token_embd.weight"][tokens] * math.sqrt(w["token_embd.weight"].shape[1])
    for layer in range(s.layers):
        b = f"blk.{layer}."
        h = rms_norm(x, w[b + "attn_norm.weight"], s.eps)
        q, k, v = (linear(h, w, b + name) for name in ("attn_q", "attn_k", "attn_v"))
        q, k = (per_head(a, s.head_dim, lambda head: rotate_half(head, s.theta)) for a in (q, k))
        seen = window if layer % 2 == 0 else None
        a = attention(q, k, v, s, 1 / math.sqrt(query_size), seen, caps[0])
        x = x + rms_norm(linear(a, w, b + "attn_output"), w[b + "post_attention_norm.weight"], s.eps)
        h = rms_norm(x, w[b + "ffn_norm.weight"], s.eps)
        gate, up = linear(h, w, b + "ffn_gate"), linear(h, w, b + "ffn_up")
        gelu = gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        x = x + rms_norm(linear(gelu * up, w, b + "ffn_down"), w[b + "post_ffw_norm.weight"], s.eps)
    logits = rms_norm(x, w["output_norm.weight"], s.eps) @ w["token_embd.weight"].T
    return log_softmax(softcap(logits, caps[1]))
