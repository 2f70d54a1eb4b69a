"""HAPre-KRS's step in PyTorch, as one would write it there: the rival of `step.py`.

The published rule (Algorithm 1) without exploration, so that nothing is random. Nothing
but PyTorch is needed; names of a ResNet's tensors are torchvision's.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

ALPHA, BALANCE, GAMMA = 1.25, 0.5, 2.0
MIN_SIDE = 0.25
MEAN, STD = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3
STAGES = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


class Norm(nn.BatchNorm2d):
    """BatchNorm whose mode is an argument: a compiled step has both."""

    def forward(self, x, train):
        statistics = self.running_mean, self.running_var
        return F.batch_norm(
            x, *statistics, self.weight, self.bias, train, self.momentum, self.eps
        )


class Block(nn.Module):
    """Convolutions of a kernel and stride each, and a shortcut."""

    def __init__(self, inputs, layers):
        super().__init__()
        self.count, first = len(layers), inputs
        stride = 1
        for index, (width, kernel, step) in enumerate(layers, 1):
            conv = nn.Conv2d(inputs, width, kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{index}", conv)
            setattr(self, f"bn{index}", Norm(width))
            inputs, stride = width, stride * step
        self.downsample = None
        if stride > 1 or first != inputs:
            conv = nn.Conv2d(first, inputs, 1, stride, bias=False)
            self.downsample = nn.ModuleList([conv, Norm(inputs)])

    def forward(self, x, train):
        y = x
        for index in range(1, self.count + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y), train)
            if index < self.count:
                y = F.relu(y, inplace=True)
        if self.downsample is not None:
            conv, norm = self.downsample
            x = norm(conv(x), train)
        return F.relu(y + x, inplace=True)


class ResNet(nn.Module):
    """Gives the stages' features, or logits where it has classes."""

    def __init__(self, name, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        self.bn1 = Norm(64)
        inputs, blocks = 64, STAGES[name]
        for stage, count in enumerate(blocks, 1):
            width, layer = 32 * 2**stage, nn.ModuleList()
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                if name == "resnet50":
                    layers = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
                else:
                    layers = ((width, 3, stride), (width, 3, 1))
                layer.append(Block(inputs, layers))
                inputs = layers[-1][0]
            setattr(self, f"layer{stage}", layer)
        self.fc = nn.Linear(inputs, classes) if classes else None

    def forward(self, x, train):
        x = F.relu(self.bn1(self.conv1(x), train), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x, train)
            features.append(x)
        return features if self.fc is None else self.fc(x.float().mean((2, 3)))


class PolicyNet(nn.Module):
    """`hapre_jax.nets.PolicyNet` on a ResNet."""

    def __init__(self, name, grid, width):
        super().__init__()
        self.grid = grid
        self.trunk = ResNet(name, 0)
        expansion = 4 if name == "resnet50" else 1
        self.lateral = nn.ModuleList(
            nn.Conv2d(64 * 2**i * expansion, width, 1) for i in range(4)
        )
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.logits = nn.Conv2d(width, 1, 1)

    def forward(self, x, train):
        features = self.trunk(x, train)
        merged = self.lateral[3](features[3])
        for stage in (2, 1, 0):
            if merged.shape[2] >= self.grid:
                break
            finer = self.lateral[stage](features[stage])
            merged = finer + F.interpolate(merged, finer.shape[2:])
        merged = F.interpolate(
            F.relu(merged).float(),
            (self.grid, self.grid),
            mode="bilinear",
            antialias=True,
        )
        return self.logits(F.relu(self.mix(merged)))[:, 0].float()


def resampling(low, high, inputs, outputs):
    """Matrices `[..., outputs, inputs]` of an antialiased bilinear crop of one axis."""
    step = (high - low)[..., None, None] * inputs / outputs
    at = (torch.arange(outputs, device=low.device) + 0.5)[:, None] * step
    at = at + (low * inputs)[..., None, None] - 0.5
    pixels = torch.arange(inputs, device=low.device)
    weights = (1 - (at - pixels).abs() / step.clamp(min=1)).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


def crop(image, box, size):
    """Boxes `[..., 4]` yxyx of images `[..., H, W]`, at `[..., size, size]`."""
    rows = resampling(box[..., 0], box[..., 2], image.shape[-2], size)
    columns = resampling(box[..., 1], box[..., 3], image.shape[-1], size)
    return rows @ image @ columns.transpose(-1, -2)


def normalize(image):
    """ImageNet's mean and deviation, averaged over colors."""
    return (image - MEAN) / STD


def mean_box(logits):
    """Boxes `[B, 4]` with the moments of the maps sigmoid(logits)."""
    weights = logits.sigmoid()
    weights = weights / weights.sum((1, 2), keepdim=True)
    cells = logits.shape[1]
    centers = (torch.arange(cells, device=logits.device) + 0.5) / cells

    def moments(marginal):
        mean = (marginal * centers).sum(1)
        variance = (marginal * (centers - mean[:, None]) ** 2).sum(1)
        return mean, (12 * (variance + 1 / (12 * cells**2))).sqrt()

    y, height = moments(weights.sum(2))
    x, width = moments(weights.sum(1))
    return torch.stack(
        [y - height / 2, x - width / 2, y + height / 2, x + width / 2], 1
    )


def rescale(box, factor):
    """Boxes `[B, 4]` with sides times a factor, valid and inside of the image."""
    middle, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
    size = (size * factor).clamp(MIN_SIDE, 1)
    middle = torch.minimum(torch.maximum(middle, size / 2), 1 - size / 2)
    return torch.cat([middle - size / 2, middle + size / 2], 1)


def masks(box, grid):
    """Boxes `[B, 4]` as maps `[B, g, g]`: the share of each cell that they cover."""
    edges = torch.arange(grid + 1, device=box.device) / grid

    def cover(low, high):
        inside = torch.minimum(edges[1:], high[:, None])
        return (inside - torch.maximum(edges[:-1], low[:, None])).clamp(min=0)

    rows, columns = cover(box[:, 0], box[:, 2]), cover(box[:, 1], box[:, 3])
    return rows[:, :, None] * columns[:, None] * grid**2


def focal(logits, target):
    """Eq. 4 `[B]`, the mean over cells."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    wrong = target * (1 - p) + (1 - target) * p
    return (loss * wrong**GAMMA).mean((1, 2))


class Step:
    """Algorithm 1 on a batch that stays on the device.

    Args:
      task, policy: networks on that device.
      image: `u8[B, H, W]`.
      label: `i64[B]`.
      size: pixels of a side of what both networks see.
      train: whether statistics are those of the batch.
      bfloat16: whether the networks compute in bfloat16.
      rates: learning rates of both.
    """

    def __init__(self, task, policy, image, label, *, size, train, bfloat16, rates):
        self.task, self.policy, self.size, self.train = task, policy, size, train
        self.image, self.label = image, label
        kind = image.device.type
        self.cast = torch.autocast(kind, torch.bfloat16, enabled=bfloat16)
        self.optimizers = [
            torch.optim.Adam(net.parameters(), rate, fused=True)
            for net, rate in zip((task, policy), rates, strict=True)
        ]
        self.losses = self._losses

    def compile(self, mode):
        """Compiles losses and gradients; the optimizers are fused already."""
        self.losses = torch.compile(self._losses, mode=mode)

    def __call__(self):
        """Updates both networks; gives the losses, the mean reward and D1."""
        torch.compiler.cudagraph_mark_step_begin()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        task_loss, policy_loss, reward, d1 = self.losses()
        (task_loss + policy_loss).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return {
            "task_loss": task_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "reward": reward,
            "d1": d1,
        }

    def _losses(self):
        image = self.image.float() / 255
        whole = normalize(image)[:, None]
        if whole.shape[-1] != self.size:
            shape = (self.size, self.size)
            whole = F.interpolate(whole, shape, mode="bilinear", antialias=True)
        with self.cast:
            logits = self.policy(
                whole.contiguous(memory_format=torch.channels_last), self.train
            )
        with torch.no_grad():
            target, reward, d1, chosen = self._try(image, logits.detach())
        policy_loss = (focal(logits, target) * reward).mean()
        task_loss = F.cross_entropy(self._see(chosen, self.train), self.label)
        return task_loss, policy_loss, reward.mean(), d1.mean()

    def _try(self, image, logits):
        """Lines 7 to 23: the target map, R, D1, and the crop that is trained on."""
        batch = len(image)
        detected = rescale(mean_box(logits), 1.0)
        # Made on the device: a copy from the host would have it wait in mid-step.
        whole = torch.arange(4, device=image.device).ge(2).float()
        larger, smaller = rescale(detected, ALPHA), rescale(detected, 1 / ALPHA)
        boxes = torch.stack([whole.expand(batch, 4), detected, larger, smaller])
        crops = crop(image, boxes, self.size)
        tried = F.cross_entropy(
            self._see(crops.flatten(0, 1), False),
            self.label.repeat(4),
            reduction="none",
        ).reshape(4, batch)
        d1 = tried[1] - tried[0]
        best, neighbor = tried[2:].min(0)
        d2 = BALANCE * (best - tried[1]) + (1 - BALANCE) * d1
        d2 = torch.where(d1 < 0, d1, d2)
        reward = torch.where(d2 < 0, d2.clamp(max=0).exp(), d2)
        choice = torch.where(d1 < 0, 1, 2 + neighbor)
        rows = torch.arange(batch, device=image.device)
        target = masks(boxes[choice, rows], logits.shape[1])
        return target, reward, d1, crops[choice, rows]

    def _see(self, images, train):
        """Logits of crops `[N, S, S]`."""
        images = normalize(images)[:, None]
        with self.cast:
            return self.task(
                images.contiguous(memory_format=torch.channels_last), train
            ).float()


def networks(name, *, grid, width, classes):
    """A task and a policy network with random weights, and a map that is not even."""
    torch.manual_seed(0)
    task, policy = ResNet(name, classes), PolicyNet(name, grid, width)
    for module in (*task.modules(), *policy.modules()):
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    nn.init.normal_(policy.logits.weight, std=1.0)
    return (
        task.to(memory_format=torch.channels_last),
        policy.to(memory_format=torch.channels_last),
    )
