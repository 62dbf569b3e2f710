"""Centerline dice: gaps in lines cost, widths do not; it never stands alone."""

import pytest
import torch

from geolearn.losses import CenterlineDice, Dice, Mixed, PixelLossOptions, find_lines, make_pixel_loss
from geolearn.losses.centerline import soft_skeleton


def road(width=6, gap=0, side=96):
    mask = torch.zeros(1, side, side, dtype=torch.int64)
    mask[:, side // 2 - width // 2 : side // 2 + width // 2] = 1
    mask[:, :, side // 2 : side // 2 + gap] = 0
    return mask


def logits_of(mask):
    return 30 * torch.nn.functional.one_hot(mask, 2).movedim(-1, 1).float()


def test_a_gap_costs_and_a_thinner_line_does_not():
    truth, thinner, broken = road(6), road(2), road(6, gap=16)
    loss, dice = CenterlineDice((1,), 5), Dice('micro')
    assert float(loss(logits_of(truth), truth)) == pytest.approx(0, abs=1e-3)
    assert float(loss(logits_of(thinner), truth)) < 0.02
    assert float(dice(logits_of(thinner), truth)) > 0.03
    assert float(loss(logits_of(broken), truth)) > 0.05
    assert float(loss(logits_of(torch.zeros_like(truth)), truth)) > 0.9
    assert float(loss(logits_of(truth), torch.zeros_like(truth))) > 0.9


def test_the_soft_skeleton_is_the_middle_and_has_finite_gradients():
    maps = road(7)[None].float().requires_grad_()
    middle = soft_skeleton(maps, 5)
    assert set(torch.nonzero(middle[0, 0].sum(1) > 0).flatten().tolist()) <= {47, 48}
    middle.sum().backward()
    assert maps.grad.isfinite().all()


def test_it_is_a_share_of_another_loss():
    assert isinstance(make_pixel_loss(PixelLossOptions(cldice_fraction=0.3), class_values=[0, 1]).base, Mixed)
    with pytest.raises(ValueError, match=r'cldice_fraction must lie in 0..0.5'):
        PixelLossOptions(cldice_fraction=0.7)
    with pytest.raises(ValueError, match='cldice_steps'):
        PixelLossOptions(cldice_fraction=0.3, cldice_steps=0)


def test_which_classes_are_lines_is_said_or_clear():
    assert find_lines(PixelLossOptions(), [1, 2]) == ()
    assert find_lines(PixelLossOptions(cldice_fraction=0.3), [0, 1, 2]) == (1, 2)
    assert find_lines(PixelLossOptions(cldice_fraction=0.3, cldice_values=(2,)), [1, 2]) == (1,)
    with pytest.raises(ValueError, match=r'none of the label values \[1, 2\] is 0.*pass cldice_values='):
        find_lines(PixelLossOptions(cldice_fraction=0.3), [1, 2])
    with pytest.raises(ValueError, match='5, which is no class'):
        find_lines(PixelLossOptions(cldice_fraction=0.3, cldice_values=(5,)), [0, 1])
