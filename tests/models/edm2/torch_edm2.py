"""EDM2 stated a second time, in torch and channels first, from Karras et al. (2024), section 2 and appendix B.

Weights are a nested dict of tensors, named as the flax model names them, with kernels [out, in, high, wide] and
[out, in]. Every function follows the dtype of its inputs.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

RESIDUAL_SHARE = 0.3
CLIP = 256.0


@dataclass(frozen=True)
class Net:
    """Sizes of a network; `classes` = 0 builds one that takes no label."""

    side: int = 64
    channels: int = 4
    classes: int = 1000
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_sides: tuple[int, ...] = (16, 8)
    head: int = 64
    uncertainty: int = 128

    @property
    def noise_width(self) -> int:
        return self.width * self.multipliers[0]

    @property
    def embedding_width(self) -> int:
        return self.width * max(self.multipliers)


class Place(NamedTuple):
    """One block of the network: where it stands, and what it takes and gives."""

    name: str
    decodes: bool
    move: str  # "down", "up" or "stay"
    attends: bool
    takes: int
    gives: int


# Magnitude-preserving operations.


def unit_rms(x, axes):
    """Divide by the root mean square over `axes`, with a floor of 1e-4."""
    count = math.prod(x.shape[axis] for axis in axes)
    size = torch.sqrt((x * x).sum(axes, keepdim=True)) / math.sqrt(count)
    return x / (size + 1e-4)


def unit_filters(kernel, gain=1.0):
    """What a layer really multiplies by: one vector of length `gain` for each output."""
    incoming = tuple(range(1, kernel.ndim))
    return gain * unit_rms(kernel, incoming) / math.sqrt(kernel[0].numel())


def dense(kernel, x, gain=1.0):
    return x @ unit_filters(kernel, gain).T


def convolve(kernel, x, gain=1.0):
    return functional.conv2d(x, unit_filters(kernel, gain), padding=kernel.shape[-1] // 2)


def activate(x):
    return functional.silu(x) / 0.596


def mix(a, b, share):
    """Interpolate two uncorrelated signals of unit size so that the result has unit size."""
    return (a + share * (b - a)) / math.hypot(1 - share, share)


def join(a, b, share=0.5):
    """Concatenate channels so that the total stays of unit size and each part contributes by its share."""
    total = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - share) ** 2 + share**2))
    return torch.cat(
        [a * (total * (1 - share) / math.sqrt(a.shape[1])), b * (total * share / math.sqrt(b.shape[1]))], 1
    )


def waves(buffers, condition):
    return math.sqrt(2) * torch.cos(condition[:, None] * buffers["frequencies"] + buffers["phases"])


def halve(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def double(x):
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


# The network.


def attend(weights, x, head):
    """Attention between pixels with cosine similarities; a channel of the first kernel is ((head, feature), role)."""
    batch, features, high, wide = x.shape
    heads = features // head
    mixed = convolve(weights["query_key_value"]["kernel"], x).reshape(batch, heads, head, 3, high * wide)
    query, key, value = unit_rms(mixed, (2,)).unbind(3)
    scores = query.transpose(2, 3) @ key / math.sqrt(head)
    seen = value @ scores.softmax(3).transpose(2, 3)
    return convolve(weights["attend"]["kernel"], seen.reshape(x.shape))


def block(weights, place, head, x, embedding):
    x = {"down": halve, "up": double, "stay": lambda same: same}[place.move](x)
    skip = weights.get("skip")
    if not place.decodes:
        x = convolve(skip["kernel"], x) if skip else x
        x = unit_rms(x, (1,))
    modulation = 1 + dense(weights["embed"]["kernel"], embedding, weights["embed_gain"])
    y = convolve(weights["residual_0"]["kernel"], activate(x))
    y = convolve(weights["residual_1"]["kernel"], activate(y * modulation[:, :, None, None]))
    if place.decodes:
        x = convolve(skip["kernel"], x) if skip else x
    x = mix(x, y, RESIDUAL_SHARE)
    if place.attends:
        x = mix(x, attend(weights, x, head), RESIDUAL_SHARE)
    return x.clamp(-CLIP, CLIP)


def encoder(net: Net) -> Iterator[Place]:
    """List the encoder's blocks in the order they run, the entering convolution left out."""
    now = net.width * net.multipliers[0]
    for level, multiplier in enumerate(net.multipliers):
        if level > 0:
            yield Place(f"encoder_{level}_down", False, "down", False, now, now)
        for index in range(net.blocks):
            before, now = now, net.width * multiplier
            attends = net.side >> level in net.attention_sides
            yield Place(f"encoder_{level}_{index}", False, "stay", attends, before, now)


def decoder(net: Net) -> Iterator[Place]:
    """List the decoder's blocks in the order they run; a plain one takes a skip beside what came before it."""
    skips = [net.width * net.multipliers[0], *(place.gives for place in encoder(net))]
    lowest = len(net.multipliers) - 1
    now = net.width * net.multipliers[lowest]
    for level in range(lowest, -1, -1):
        if level == lowest:
            yield Place(f"decoder_{level}_in0", True, "stay", True, now, now)
            yield Place(f"decoder_{level}_in1", True, "stay", False, now, now)
        else:
            yield Place(f"decoder_{level}_up", True, "up", False, now, now)
        for index in range(net.blocks + 1):
            before, now = now + skips.pop(), net.width * net.multipliers[level]
            attends = net.side >> level in net.attention_sides
            yield Place(f"decoder_{level}_{index}", True, "stay", attends, before, now)


def embed(net, weights, buffers, condition, label):
    """Map the noise level and the class to one vector; a label of `classes` is no class, a vector of zeros."""
    embedding = dense(weights["noise"]["kernel"], waves(buffers["noise_waves"], condition))
    if net.classes > 0:
        chosen = functional.one_hot(label, net.classes + 1)[:, : net.classes].to(embedding) * math.sqrt(net.classes)
        embedding = mix(embedding, dense(weights["label"]["kernel"], chosen), 0.5)
    return activate(embedding)


def network(net, weights, buffers, x, condition, label=None):
    """Return F [batch, channels, side, side] of x of that shape, ln(sigma) / 4 [batch] and classes [batch]."""
    embedding = embed(net, weights, buffers, condition, label)
    x = convolve(weights["enter"]["kernel"], torch.cat([x, torch.ones_like(x[:, :1])], 1))
    skips = [x]
    for place in encoder(net):
        x = block(weights[place.name], place, net.head, x, embedding)
        skips.append(x)
    for place in decoder(net):
        if place.takes != x.shape[1]:
            x = join(x, skips.pop())
        x = block(weights[place.name], place, net.head, x, embedding)
    return convolve(weights["leave"]["kernel"], x, weights["leave_gain"])


def log_variance(weights, buffers, condition):
    """Return the uncertainty u [batch] that the network gives the noise levels."""
    return dense(weights["uncertainty"]["kernel"], waves(buffers["uncertainty_waves"], condition))[:, 0]


# Preconditioning, loss and forced weight normalisation.


def denoise(net, weights, buffers, x, sigma, label=None, data_std=0.5):
    """Return D(x; sigma), of the shape of x, for sigma [batch]."""
    noise, variance = sigma[:, None, None, None], sigma[:, None, None, None] ** 2 + data_std**2
    output = network(net, weights, buffers, x / variance.sqrt(), sigma.log() / 4, label)
    return data_std**2 / variance * x + noise * data_std / variance.sqrt() * output


def weighted_loss(net, weights, buffers, clean, noise, sigma, label=None, data_std=0.5):
    """Return lambda(sigma) / e^u * (D - clean)^2 + u for every entry of `clean`, with unit normal `noise`."""
    spread = sigma[:, None, None, None]
    denoised = denoise(net, weights, buffers, clean + spread * noise, sigma, label, data_std)
    u = log_variance(weights, buffers, sigma.log() / 4)[:, None, None, None]
    weight = (spread**2 + data_std**2) / (spread * data_std) ** 2
    return weight / u.exp() * (denoised - clean) ** 2 + u


def project(weights):
    """Give every filter of every kernel a root mean square of 1, and leave the gains."""
    if not isinstance(weights, dict):
        return weights if weights.ndim == 0 else unit_rms(weights, tuple(range(1, weights.ndim)))
    return {name: project(value) for name, value in weights.items()}


# Shapes, and weights from a formula.


def kernel_shapes(net: Net) -> dict:
    """Return the tree of the weights' shapes, kernels as [out, in, high, wide] and [out, in]."""

    def kernel(gives, takes, size=None):
        return {"kernel": (gives, takes) if size is None else (gives, takes, size, size)}

    tree = {
        "noise": kernel(net.embedding_width, net.noise_width),
        "uncertainty": kernel(1, net.uncertainty),
        "enter": kernel(net.width * net.multipliers[0], net.channels + 1, 3),
        "leave": kernel(net.channels, net.width * net.multipliers[0], 3),
        "leave_gain": (),
    }
    if net.classes > 0:
        tree["label"] = kernel(net.embedding_width, net.classes)
    for place in [*encoder(net), *decoder(net)]:
        wide = place.gives
        parts = {"embed": kernel(wide, net.embedding_width), "embed_gain": ()}
        parts["residual_0"] = kernel(wide, place.takes if place.decodes else wide, 3)
        parts["residual_1"] = kernel(wide, wide, 3)
        if place.takes != wide:
            parts["skip"] = kernel(wide, place.takes, 1)
        if place.attends:
            parts |= {"query_key_value": kernel(3 * wide, wide, 1), "attend": kernel(wide, wide, 1)}
        tree[place.name] = parts
    return tree


def number_of_weights(shapes) -> int:
    if isinstance(shapes, tuple):
        return math.prod(shapes)
    return sum(number_of_weights(value) for value in shapes.values())


def chirp(name: str, count: int) -> np.ndarray:
    """Return sqrt(2) sin(p + 0.37 k (k + 1)) for k = 0 .. count - 1 in float64, p = crc32(name) mod 1000.

    A stand-in for unit normal numbers that needs no generator: its phases never repeat in step with a kernel's axes.
    """
    k = np.arange(count, dtype=np.float64)
    return math.sqrt(2) * np.sin(zlib.crc32(name.encode()) % 1000 + 0.37 * k * (k + 1))


def filled_weights(net: Net, dtype=torch.float64) -> dict:
    """Fill kernels by `chirp` of their path, counted in the order [high, wide, in, out]; every gain is 0.7."""

    def fill(path, shapes):
        if isinstance(shapes, dict):
            return {name: fill(f"{path}/{name}" if path else name, value) for name, value in shapes.items()}
        if shapes == ():
            return torch.tensor(0.7, dtype=dtype)
        last = [*shapes[2:], shapes[1], shapes[0]]
        return torch.tensor(outputs_first(chirp(path, math.prod(shapes)).reshape(last)), dtype=dtype)

    return fill("", kernel_shapes(net))


def filled_buffers(net: Net, dtype=torch.float64) -> dict:
    """Fill the fixed waves by `chirp` of their path, with a largest frequency of 2 pi."""

    scales = {"frequencies": math.sqrt(2) * math.pi, "phases": math.pi}
    widths = {"noise_waves": net.noise_width, "uncertainty_waves": net.uncertainty}

    def fill(name, part):
        return torch.tensor(scales[part] * chirp(f"{name}/{part}", widths[name]), dtype=dtype)

    return {name: {part: fill(name, part) for part in scales} for name in widths}


def outputs_first(kernel: np.ndarray) -> np.ndarray:
    """Turn a kernel [high, wide, in, out] or [in, out] into torch's order."""
    return np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1)))


def outputs_last(kernel: np.ndarray) -> np.ndarray:
    """Turn a kernel in torch's order into [high, wide, in, out] or [in, out]."""
    return np.ascontiguousarray(np.moveaxis(kernel, (0, 1), (-1, -2)))
