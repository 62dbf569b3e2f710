"""DINO: a student learns to predict, from any crop of an image, what its own running mean says of large crops."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import TokenBackbone
from geolearn.backbones.trunk import Trunk
from geolearn.networks.network import Normalize
from geolearn.pretrain import views
from geolearn.pretrain.network import PretrainingNetwork, Representations, describe_images
from geolearn.pretrain.options import DinoOptions
from geolearn.training.distributed import add_up


class DinoHead(nn.Module):
    """Three linear layers to a bottleneck, whose direction is compared with that of every prototype.

    Args:
        dim: Width of the backbone.
        options: Widths.
    """

    def __init__(self, dim: int, options: DinoOptions) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, options.hidden),
            nn.GELU(),
            nn.Linear(options.hidden, options.hidden),
            nn.GELU(),
            nn.Linear(options.hidden, options.bottleneck),
        )
        self.prototypes = nn.Parameter(torch.randn(options.prototypes, options.bottleneck) * 0.02)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return cosines (N, prototypes) of vectors (N, D)."""
        return F.linear(F.normalize(self.mlp(x), dim=1), F.normalize(self.prototypes, dim=1))


class Dino(PretrainingNetwork):
    """Student, teacher, and their heads.

    Args:
        normalize: Takes the images first.
        backbone: The student, in its native form; the teacher starts as its copy.
        options: Of the method.
        chip_size: Side of global crops in pixels.
    """

    center: Tensor
    center_sum: Tensor

    def __init__(self, normalize: Normalize, backbone: TokenBackbone, options: DinoOptions, chip_size: int) -> None:
        super().__init__(normalize)
        self.options = options
        patch = backbone.trunk.patch
        self.global_size = chip_size
        self.local_size = max(patch, round(options.local_size * chip_size / patch) * patch)
        self.student, self.student_head = backbone, DinoHead(backbone.trunk.dim, options)
        self.teacher, self.teacher_head = copy.deepcopy(self.student), copy.deepcopy(self.student_head)
        self.teacher.requires_grad_(False)
        self.teacher_head.requires_grad_(False)
        self.register_buffer('center', torch.zeros(options.prototypes))
        self.register_buffer('center_sum', torch.zeros(options.prototypes + 1))
        self._last_layer_is_frozen = False

    @property
    def class_token_is_trained(self) -> bool:
        """Whether the backbone has a class token: it is what the heads take."""
        return self.student.prefix > 0

    @property
    def result(self) -> Trunk:
        """The teacher's encoder, which is better than the student's at every time."""
        return self.teacher.trunk

    def forward(self, images: Tensor, *labels: object) -> tuple[Representations | None, Tensor]:
        """Compute the loss of images (N, bands, H, W); labels are ignored."""
        x = self.normalize(images)
        if self.training:
            return None, self._loss(x, None)
        features = self._embed(self.teacher, x)
        probabilities = self._sharpen(self.teacher_head(features))
        return Representations(features.float(), probabilities), self._loss(x, views.fixed_generator())

    def begin_epoch(self, epoch: int) -> None:
        """Freeze the last layer of the head in the first epochs."""
        self._last_layer_is_frozen = epoch < self.options.freeze_last_epochs

    def begin_step(self) -> None:
        """Drop the gradient of a frozen last layer."""
        if self._last_layer_is_frozen:
            self.student_head.prototypes.grad = None

    @torch.no_grad()
    def finish_step(self, progress: float) -> None:
        """Move the teacher towards the student, and the center towards the mean output."""
        momentum = 1 - (1 - self.options.momentum) * (math.cos(math.pi * progress) + 1) / 2
        pairs = ((self.teacher, self.student), (self.teacher_head, self.student_head))
        slow: list[Tensor] = [parameter for teacher, _ in pairs for parameter in teacher.parameters()]
        fast: list[Tensor] = [parameter for _, student in pairs for parameter in student.parameters()]
        torch._foreach_lerp_(slow, fast, 1 - momentum)
        total = add_up(self.center_sum.clone())
        mean = total[:-1] / total[-1].clamp(min=1)
        if self.options.centering:
            moved = torch.lerp(mean, self.center, self.options.center_momentum)
            self.center.copy_(torch.where(moved.isfinite(), moved, self.center))
        self.center_sum.zero_()

    def _loss(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        options = self.options
        large = self._views(x, 2, self.global_size, options.global_scale, generator)
        with torch.no_grad():
            logits = self.teacher_head(self._embed(self.teacher, large.flatten(0, 1))).float()
            if self.training:
                self.center_sum[:-1] += logits.sum(0)
                self.center_sum[-1] += len(logits)
            target = self._sharpen(logits).unflatten(0, (2, -1))
        outputs = [self.student_head(self._embed(self.student, large.flatten(0, 1))).unflatten(0, (2, -1))]
        if options.local_crops:
            small = self._views(x, options.local_crops, self.local_size, options.local_scale, generator)
            local = self.student_head(self._embed(self.student, small.flatten(0, 1)))
            outputs.append(local.unflatten(0, (options.local_crops, -1)))
        student = F.log_softmax(torch.cat(outputs).float() / options.student_temperature, dim=-1)
        # every view of the student against both of the teacher's, but never a view against itself
        pairs = torch.einsum('tnk,snk->ts', target, student)
        return -_without_same(pairs).sum() / (len(x) * (2 * len(student) - 2))

    def _views(
        self, x: Tensor, count: int, side: int, scale: tuple[float, float], generator: torch.Generator | None
    ) -> Tensor:
        drawn = views.draw_views(x, count, side, scale, options=self.options, generator=generator)
        return views.jitter(drawn, self.options, generator=generator)

    def _embed(self, backbone: TokenBackbone, x: Tensor) -> Tensor:
        return describe_images(backbone, backbone.trunk.tokens(x), class_token=True)

    def _sharpen(self, logits: Tensor) -> Tensor:
        return F.softmax((logits.float() - self.center) / self.options.teacher_temperature, dim=-1)


def _without_same(pairs: Tensor) -> Tensor:
    """Leave out the pairs (teacher's view, student's view) of one and the same view."""
    kept = torch.ones_like(pairs)
    kept[0, 0] = kept[1, 1] = 0
    return pairs * kept
