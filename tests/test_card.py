"""On a pretended card: rules, mixings and attacks answer as on the CPU, and wait no more often than they may."""

from __future__ import annotations

import pytest
import torch

import varangian as vg
from pretended import OnTwoDevices, PretendedCard


def test_the_pretended_card_counts_what_a_card_would_wait_for() -> None:
    with PretendedCard() as card:
        x = torch.randn(5, 7, device="cuda:0")
        assert (x.device.type, x.is_cuda, (x + x).device.index) == ("cuda", True, 0)
        card.reset()
        assert float(x.sum().cpu()) == pytest.approx(float(x.held.sum()))
        assert card.launches.total() == 1
        assert card.waits.total() == 1
        with pytest.raises(OnTwoDevices):
            x + torch.ones(5, 7)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        card.reset()
        torch.ones(3).pin_memory().to("cuda:0", non_blocking=True)
        assert (card.waits.total(), card.to_card) == (0, 12)
        torch.ones(3).to("cuda:0")
        assert card.waits.total() == 1


@pytest.mark.parametrize(("rule", "waits"), [(vg.Median(f=2), 1), (vg.MultiKrum(f=2), 1)], ids=str)
def test_a_rule_waits_once(rule: vg.Rule, waits: int) -> None:
    x = torch.randn(11, 300, generator=torch.Generator().manual_seed(1))
    with PretendedCard() as card:
        there = x.to("cuda:0")
        card.reset()
        found = rule(there)
        assert card.waits.total() == waits, card
        torch.testing.assert_close(found.cpu(), rule(x), rtol=1e-6, atol=1e-7)
