"""The update of MixMatch in PyTorch, as its users write one: Wide ResNet, mode xxy.yxy. For scripts/benchmark.py.

    python scripts/pytorch/update.py JSON      makes an update for each line that it reads, and answers with a line

It imports nothing of libml: TensorFlow and PyTorch do not get on in one process.
"""

import itertools
import json
import sys
import types

import torch
from torch import nn
from torch.nn import functional

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def make_norm(channels):
    """Returns a batch norm layer, see layers.batch_norm."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.001)


class Block(nn.Module):
    """A residual block, see networks.resnet."""

    def __init__(self, width, filters, stride, activate_first):
        super().__init__()
        self.stride, self.activate_first = stride, activate_first
        self.norm1, self.conv1 = make_norm(width), nn.Conv2d(width, filters, 3, stride, padding=1)
        self.norm2, self.conv2 = make_norm(filters), nn.Conv2d(filters, filters, 3, padding=1)
        self.shortcut = nn.Conv2d(width, filters, 1) if width != filters else nn.Identity()

    def forward(self, x):
        h = functional.leaky_relu(self.norm1(x), 0.1)
        # Sliced, as in layers.conv2d: oneDNN's gradient of a strided 1×1 convolution writes outside of its memory.
        shortcut = self.shortcut((h if self.activate_first else x)[:, :, :: self.stride, :: self.stride])
        return shortcut + self.conv2(functional.leaky_relu(self.norm2(self.conv1(h)), 0.1))


def make_network(colors, nclass, scales, filters, repeat):
    """Returns networks.resnet as an nn.Module, float32 [N, C, H, W] -> [N, nclass]."""
    blocks, width = [], 16
    for stage, i in itertools.product(range(scales), range(repeat)):
        stride = 2 if stage and i == 0 else 1
        blocks.append(Block(width, filters << stage, stride, activate_first=stage == i == 0))
        width = filters << stage
    tail = make_norm(width), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, nclass)
    return nn.Sequential(nn.Conv2d(colors, 16, 3, padding=1), *blocks, *tail)


def interleave(batches):
    """See layers.interleave."""
    size, longer = divmod(len(batches[0]), len(batches))
    sizes = [size] * (len(batches) - longer) + [size + 1] * longer
    groups = [list(v.split(sizes)) for v in batches]
    for i in range(1, len(groups)):
        groups[0][i], groups[i][i] = groups[i][i], groups[0][i]
    return [torch.cat(group) for group in groups]


def draw(n, beta):
    """Draws m, float32 [n], and the partners' positions, int64 [n]; see layers.mix_weights and layers.permutation."""
    share = torch.distributions.Beta(*torch.full([2], beta, device=DEVICE)).sample([n])
    return torch.maximum(share, 1 - share), torch.randperm(n, device=DEVICE)


def make_update(network, x, y, label, o, compiled=False, draw=draw):
    """Returns a function that makes an update on a batch and returns its losses, two float32 [].

    Adam, weight decay, the weights' average and batch norm's averages move as in layers.update.

    Args:
        network: see make_network.
        x, y, label: float32 [B, H, W, C] and [nu, B, H, W, C] in [-1, 1], int64 [B].
        o: namespace of AblationMixMatch's parameters, nclass, and precision.
        compiled: whether torch.compile compiles the guess and the losses.
        draw: function as `draw`.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = o.precision == 'tf32'
    torch.backends.cudnn.benchmark = True
    cast = torch.autocast(DEVICE, torch.bfloat16, enabled=o.precision == 'bfloat16')
    network = network.to(DEVICE, memory_format=torch.channels_last)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    images = torch.cat([x, *y]).movedim(-1, 1).to(DEVICE, memory_format=torch.channels_last)
    label = functional.one_hot(label.to(DEVICE), o.nclass).float()
    weights = list(network.parameters())
    kernels, averages = [w for w in weights if w.ndim > 1], [w.detach().clone() for w in weights]
    adam = torch.optim.Adam(weights, o.lr, fused=True)
    batch, step = len(x), 0

    def classify(batches, moves):
        """Returns the logits of batches; whether batch norm's averages move, by the first of them."""
        logits = []
        for images in batches:
            for norm in norms:
                norm.track_running_stats = moves and not logits
            with cast:
                logits.append(network(images).float())
        return logits

    def guess(images):
        p = torch.stack(classify(images[batch:].split(batch), False)).softmax(2).mean(0)
        return (p.log() / o.T).softmax(1)

    def compute_losses(images, label_y, m, partner):
        labels = torch.cat([label, *[label_y] * o.nu])
        labels = torch.lerp(labels[partner], labels, m[:, None])
        mixed = torch.lerp(images[partner], images, m[:, None, None, None])
        logits = interleave(classify(interleave(mixed.split(batch)), True))
        target_x, target_y = labels[:batch], labels[batch:]
        loss_xe = functional.cross_entropy(logits[0], target_x)
        return loss_xe, (target_y - torch.cat(logits[1:]).softmax(1)).square().mean()

    if compiled:
        guess, compute_losses = torch.compile(guess), torch.compile(compute_losses)

    def update():
        nonlocal step
        with torch.no_grad():
            label_y = guess(images)
        loss_xe, loss_l2u = compute_losses(images, label_y, *draw(len(images), o.beta))
        weight = o.w_match * min(1, step / (1024 * o.warmup_kimg)) if o.warmup_kimg else o.w_match
        (loss_xe + weight * loss_l2u).backward()
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            torch._foreach_mul_(kernels, 1 - o.wd * o.lr)
            torch._foreach_lerp_(averages, weights, 1 - o.ema)
        step += batch
        return loss_xe.detach(), loss_l2u.detach()

    return update


def main():
    """Makes updates as they are asked for; the argument has the parameters, precision, colors, side and compiled."""
    o = types.SimpleNamespace(**json.loads(sys.argv[1]))
    x, y = (torch.rand(*n, o.batch, o.side, o.side, o.colors) * 2 - 1 for n in ([], [o.nu]))
    network = make_network(o.colors, o.nclass, o.scales, o.filters, o.repeat)
    update = make_update(network, x, y, torch.randint(o.nclass, [o.batch]), o, o.compiled)
    for _ in sys.stdin:
        print([loss.item() for loss in update()], flush=True)


if __name__ == '__main__':
    main()
