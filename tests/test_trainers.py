"""The recipes for Lightning, Accelerate and the Hugging Face Trainer, with the real packages on four real ranks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import ranks
import trainer_ranks
from trainer_ranks import SIZE, STEPS, WAYS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
NEEDS = {"lightning": ("lightning",), "accelerate": ("accelerate",), "transformers": ("transformers", "accelerate")}
HERE = [name for name, packages in NEEDS.items() if all(map(find_spec, packages))]
TRAINERS = [
    pytest.param(name, marks=() if name in HERE else pytest.mark.skip(f"{name} is not installed")) for name in NEEDS
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found. All trainers share one group of processes: starting it takes longer than most checks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VARANGIAN_TEST_TRAINERS", ",".join(HERE))
        patch.setenv("OMP_NUM_THREADS", "1")
        return ranks.start(SIZE, tmp_path_factory.mktemp("ranks"), trainer_ranks.everything)


def all_say(found: list[dict[str, Any]], key: str) -> Any:
    """What every rank found alike."""
    assert all(str(each[key]) == str(found[0][key]) for each in found), [each[key] for each in found]
    return found[0][key]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_trains_as_an_own_loop_does(found: list[dict[str, Any]], trainer: str, way: str) -> None:
    """To the last bit, on the batches that it took, whatever it is asked for and whoever is NaN."""
    every, _, _, faulty = WAYS[way]
    for each in found:
        result = each[f"{trainer}: {way}"]
        assert result["same bits"], result["difference"]
        assert result["moved"] > 0.01
        assert result["batches"] == STEPS
        assert (result["report"].steps, result["report"].skipped) == (
            (STEPS, 1) if way == "refused" else (STEPS // every, 0)
        )
        assert [rank.rank for rank in result["report"].ranks if rank.nonfinite] == list(faulty)
    assert all_say(found, f"{trainer}: {way}")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_a_trainer_is_asked_for_makes_a_difference(found: list[dict[str, Any]], trainer: str) -> None:
    assert len({found[0][f"{trainer}: {way}"]["parameters"] for way in WAYS}) == len(WAYS)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_resumed_training_goes_on_with_every_ranks_memory(found: list[dict[str, Any]], trainer: str) -> None:
    assert all_say(found, f"{trainer}: resumed") is True
    memories = all_say(found, f"{trainer}: memories")
    assert len(set(memories)) == SIZE
    assert min(memories) > 0
    assert len(set(all_say(found, f"{trainer}: steps"))) == 1


@pytest.mark.skipif(not HERE, reason="no trainer is installed")
def test_what_is_computed_anew_in_the_backward_pass_changes_nothing(found: list[dict[str, Any]]) -> None:
    faulty, refused = (set(all_say(found, "checkpointing")[k : k + 3]) for k in (0, 3))
    assert len(faulty) == len(refused) == 1
    assert faulty.pop().startswith("0 skipped")
    assert refused.pop().startswith("1 skipped")


REFUSED = {
    "lightning: without memory": "Protect needs a checkpoint of a protected training, got one without its memory.",
    "lightning: of three ranks": "load_state_dict needs a state of 4 ranks, got one of 3.",
    "lightning: of another algorithm": "load_state_dict needs a state of Algorithm(worker=(Momentum(beta=0.5",
    "accelerate: without memory": "load_state_dict needs a state that says whose it is",
    "accelerate: of another algorithm": "load_state_dict needs a state of Algorithm(worker=(Momentum(beta=0.5",
    "accelerate: hooked": "protect needs a model without a communication hook of its own, got register_comm_hook's.",
    "accelerate: not wrapped": "protect needs a DistributedDataParallel, got Net.",
    "transformers: without memory": "load_state_dict needs a state that says whose it is",
    "transformers: elsewhere": "load_state_dict needs a state that says whose it is",
    "transformers: of another algorithm": "load_state_dict needs a state of Algorithm(worker=(Momentum(beta=0.5",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_refused_is_refused_on_every_rank(found: list[dict[str, Any]], key: str) -> None:
    if key.split(":")[0] not in HERE:
        pytest.skip("not installed")
    for each in found:
        assert REFUSED[key] in each[key]
        assert "\n" not in each[key]
    if key.endswith((": without memory", ": elsewhere")) and not key.startswith("lightning"):
        assert "varangian-2.pt, which is not there: " in found[2][key]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_example(found: list[dict[str, Any]], trainer: str) -> None:
    """Plain training is lost, the protected one is not, and the report names the rank."""
    shows(found[0][f"{trainer}: example"])
    assert all(each[f"{trainer}: example"] == "" for each in found[1:])


def shows(text: str) -> None:
    plain, protected = (float(re.search(rf"^  {word} +([\d.]+)%$", text, re.M)[1]) for word in ("plain", "protected"))  # type: ignore[index]
    assert plain < 15
    assert protected > 60
    table = text[text.index("rank  rejected  not finite") :].splitlines()
    assert table[1].split()[0] == "3"


@pytest.mark.skipif("lightning" not in HERE, reason="lightning is not installed")
class TestLightning:
    def test_a_step_by_hand(self, found: list[dict[str, Any]]) -> None:
        assert all(each["lightning: manual"]["same bits"] for each in found)

    def test_a_second_fit_starts_anew_as_its_optimizers_do(self, found: list[dict[str, Any]]) -> None:
        assert all_say(found, "lightning: fitted again") == STEPS

    def test_a_loss_of_nan_on_one_rank_stops_who_watches_the_mean(self, found: list[dict[str, Any]]) -> None:
        """As the page says: what a trainer does beside gradients is not protected. The weights are."""
        assert all_say(found, "lightning: stopped early") == {True: (STEPS, True), False: (2 * STEPS, True)}

    def test_it_starts_its_ranks_itself(self, tmp_path: Path) -> None:
        command = [sys.executable, str(ROOT / "examples" / "lightning_faulty_rank.py")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        shows(done.stdout)


@pytest.mark.skipif("transformers" not in HERE, reason="transformers is not installed")
class TestTransformers:
    def test_it_resumes_from_elsewhere_where_that_is_said(self, found: list[dict[str, Any]]) -> None:
        assert all_say(found, "transformers: elsewhere, said so") is True
        assert all_say(found, "transformers: nothing left") == 0

    def test_a_second_train_goes_on(self, found: list[dict[str, Any]]) -> None:
        assert all_say(found, "transformers: trained again") == 2 * STEPS


PAGE = ROOT / "docs" / "howto" / "trainers.md"


def recipe_of(name: str) -> str:
    """The part of an example that is to be copied."""
    text = (ROOT / "examples" / f"{name}_faulty_rank.py").read_text()
    return text[text.index("# ---- recipe") : text.index("# ---- end of the recipe")].partition("\n")[2].strip()


@pytest.mark.parametrize("name", NEEDS)
def test_the_page_shows_the_recipes_that_are_tested(name: str) -> None:
    assert recipe_of(name) in PAGE.read_text()
