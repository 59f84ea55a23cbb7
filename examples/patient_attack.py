"""An attack that remembers: it waits, learning where honest vectors go, and then leads the other way."""

from dataclasses import dataclass

import torch

import varangian as vg


@dataclass(frozen=True)
class Patient(vg.Attack):
    wait: int = 10  # --attack "patient_attack.py:Patient(wait=5)"
    factor: float = 1.5
    remembers = True  # craft answers what is sent, and the memory for the next step

    def craft(self, seen):
        mean, deviation = seen.moments
        path, step = (torch.zeros_like(mean), torch.zeros_like(mean[:1])) if seen.memory is None else seen.memory
        path, step = path + mean, step + 1  # new tensors: what is found in seen.memory is only read
        away = mean - self.factor * deviation * path.sign()
        return torch.where(step > self.wait, away, mean), (path, step)
